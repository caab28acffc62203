"""The report: one HTML file with its figures, styles and scripts inside."""

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any

from gemma_alignment.parameters.reporting import ReportingParameters
from gemma_alignment.report import (
    budget_section,
    figures,
    judge_section,
    learning,
    reward_section,
    sections,
    seeds_section,
    tables,
    variant_tables,
    win_tables,
    wording,
)
from gemma_alignment.report.curves import axes_of, compared, others
from gemma_alignment.report.html import Content, Html, details, h, join
from gemma_alignment.report.plotting import Figure
from gemma_alignment.report.runs import Run, RunKey
from gemma_alignment.report.variants import described

ASSETS = files("gemma_alignment.report") / "assets"
PLOTLY = "plotly-basic-4.1.1.min.js"

Block = Mapping[str, Any]


def render(comparison: Block, runs: Mapping[RunKey, Run], settings: ReportingParameters) -> str:
    """The whole page.

    Args:
        comparison: every number.
        runs: histories, timings and answers, for the curves and the table of answers.
        settings: how much is shown.
    """
    families = compared(runs, comparison)
    further = {name: found for name, found in others(runs, families).items() if name not in described(comparison)}
    axes = axes_of({**families, **further})
    curves = learning.learning_curves({**families, **further}, axes, on_request=further)
    more = [
        figures.frontier(families, "eval/gold_mean" in comparison["metrics"]),
        figures.length_and_score(families, settings.points_shown),
    ]
    first = [figures.forest(comparison), figures.win_bars(comparison)]
    sweeps = figures.sweeps(comparison)
    reward = reward_section.figures(comparison["reward_model_card"])
    drawn = [one for one in (*first, *curves, *more, *sweeps, *reward) if one]
    body = [
        _first_screen(comparison, settings.title, [one for one in first if one]),
        *_parts(
            comparison,
            runs,
            settings,
            _curves_part(curves, learning.axis_values(axes)),
            [f for f in more if f],
            sweeps,
            reward,
        ),
    ]
    data = {"figures": {one.id: one.spec for one in drawn}, "axes": learning.axis_values(axes)}
    return _page(settings.title, join(body), data)


def _first_screen(comparison: Block, title: str, drawn: Sequence[Figure]) -> Html:
    protocol = comparison["protocol"]
    judged = comparison["judge"]["judged"]
    not_judged = (
        None if judged else h("p", "Not judged: ", h("a", "how to have the answers judged", href="#judge"), ".")
    )
    return h(
        "header",
        h("p", title, class_="eyebrow"),
        h("h1", wording.question(protocol)),
        h(
            "div",
            h("p", wording.headline(comparison["verdict"], protocol), class_="verdict"),
            h("p", wording.evidence(comparison)),
            h("p", wording.effect_sentence(comparison)),
            not_judged,
            class_="card",
        ),
        h("div", *(_figure(one) for one in drawn), class_="grid"),
    )


def _parts(
    comparison: Block,
    runs: Mapping[RunKey, Run],
    settings: ReportingParameters,
    curves: Content,
    more: Sequence[Figure],
    sweeps: Sequence[Figure],
    reward: Sequence[Figure],
) -> list[Html]:
    protocol = comparison["protocol"]
    pair = (protocol["method_a"], protocol["method_b"])
    rates = any(comparison["win_rates"].values())
    answers = sections.answers(runs, pair, settings.answers_shown, settings.answer_characters)
    found: list[tuple[str, str, Content]] = [
        ("results", "Results", _results(comparison)),
        ("wins", "Win rates", _win_rates(comparison) if rates else None),
        ("curves", "Learning curves", curves),
        ("drift", "Score, drift and length", _grid(more)),
        ("stability", "Stability", _stability(comparison)),
        ("ablations", "Ablations", _ablations(comparison)),
        ("sensitivity", "Sensitivity", _sensitivity(comparison, sweeps)),
        ("budgets", "At equal budgets", budget_section.tables(comparison)),
        ("cost", "Memory, time and budget", tables.costs(comparison)),
        ("models", "SFT and reward model", sections.shared_models(comparison)),
        ("reward-model", "The reward model’s card", _with_figures(reward_section.tables(comparison), reward)),
        ("judge", "The judge", judge_section.judge_card(comparison["judge"])),
        ("answers", "Answers side by side", answers),
        ("others", "Other runs", sections.other_runs(comparison)),
        ("protocol", "Protocol", _protocol(comparison)),
        ("limits", "What these seeds can and cannot show", _limits(comparison)),
        ("reproduce", "Reproduce", _reproduce(comparison)),
    ]
    shown = [(name, title, content) for name, title, content in found if content]
    links = h("nav", *(h("a", title, href=f"#{name}") for name, title, _ in shown), aria_label="Contents")
    return [links, *(h("section", h("h2", title), content, id=name) for name, title, content in shown)]


def _results(comparison: Block) -> Html:
    if not comparison["metrics"]:
        return h("p", "No finished run of either method was found.")
    answers, robust = tables.final_answers(comparison), seeds_section.robust(comparison)
    return join(
        [
            tables.results(comparison),
            h(
                "p",
                "Small figures are the single seeds, in order, and the bounds of intervals.",
                class_="note",
            ),
            budget_section.spent(comparison),
            details("Tests, each with the least p it can reach", tables.significance(comparison)),
            details("Paired by seed (another scale than d)", tables.paired(comparison)),
            details("The final answers, prompt by prompt", answers) if answers else None,
            details("Interquartile mean and probability of improvement", robust) if robust else None,
        ]
    )


def _win_rates(comparison: Block) -> Html:
    return join(
        [
            win_tables.win_rates(comparison),
            details("Seed by seed", win_tables.win_rates_by_seed(comparison), open_=True),
        ]
    )


def _curves_part(curves: Sequence[Figure], axes: Block) -> Html | None:
    if not curves:
        return None
    options = [h("option", label, value=axis) for axis, label in axes["labels"].items()]
    switch = h("label", "x axis ", h("select", *options, id="axis"), class_="no-print")
    note = "Bold: mean over seeds. Faint: each seed. Shaded: least to largest seed."
    return join([h("p", switch), h("p", note, class_="note"), h("div", *map(_figure, curves), class_="grid")])


def _stability(comparison: Block) -> Html | None:
    shown = variant_tables.stability(comparison)
    return join([shown, h("p", wording.drawdown_note(), class_="note")]) if shown else None


def _ablations(comparison: Block) -> Html | None:
    shown = [variant_tables.factor(one, over_values=False) for one in comparison["ablations"]]
    return join([h("p", wording.variants_note(comparison["protocol"])), *shown]) if shown else None


def _sensitivity(comparison: Block, sweeps: Sequence[Figure]) -> Html | None:
    shown = [variant_tables.factor(one, over_values=True) for one in comparison["sensitivity"]]
    if not shown:
        return None
    note = h("p", wording.variants_note(comparison["protocol"]))
    return join([note, _grid(sweeps), *shown, h("p", wording.range_note(), class_="note")])


def _grid(drawn: Sequence[Figure]) -> Html | None:
    return h("div", *map(_figure, drawn), class_="grid") if drawn else None


def _with_figures(content: Html | None, drawn: Sequence[Figure]) -> Html | None:
    return join([_grid(drawn), content]) if content else None


def _figure(one: Figure) -> Html:
    plot = h(
        "div",
        class_="plot",
        data_figure=one.id,
        style=f"height:{one.height}px",
        role="img",
        aria_label=one.title,
    )
    caption = h("figcaption", one.caption) if one.caption else None
    return h("figure", h("h3", one.title), plot, caption)


def _protocol(comparison: Block) -> Html:
    runs = sections.runs(comparison)
    shown = details("Every run, and what it was made from", runs) if runs else None
    return join([sections.protocol(comparison), shown])


def _limits(comparison: Block) -> Html:
    more = join([seeds_section.power(comparison), seeds_section.seen(comparison)])
    return join([sections.limits(comparison), details("Power, and how many seeds would show it", more, open_=True)])


def _reproduce(comparison: Block) -> Html:
    return join(
        [
            h("pre", wording.reproduce(comparison["protocol"])),
            details("Software that wrote this report", sections.software(comparison)),
        ]
    )


def _page(title: str, body: Html, data: Block) -> str:
    head = h(
        "head",
        h("meta", charset="utf-8"),
        h("meta", name="viewport", content="width=device-width, initial-scale=1"),
        h("meta", name="color-scheme", content="light dark"),
        h("title", title),
        h("style", Html(_asset("report.css"))),
    )
    scripts = [
        h("noscript", h("p", "The figures need JavaScript; every number is in the tables.", class_="note")),
        h("script", Html(json_for_script(data)), type="application/json", id="data"),
        h("script", Html(_asset(PLOTLY))),
        h("script", Html(_asset("report.js"))),
    ]
    page = h("html", head, h("body", h("main", body), *scripts), lang="en")
    return f"<!doctype html>\n{page}\n"


def json_for_script(data: Block) -> str:
    """JSON that cannot end the script element it stands in, nor break a line of script."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")
