"""The report: one HTML file with its figures, styles and scripts inside."""

from collections.abc import Mapping, Sequence
from typing import Any

from gemma_alignment.parameters.reporting import ReportingParameters
from gemma_alignment.report import (
    answer_table,
    budget_section,
    by_source,
    judge_section,
    phases,
    reward_section,
    sections,
    seeds_section,
    tables,
    variant_tables,
    win_tables,
    wording,
)
from gemma_alignment.report.drawing import Drawn, draw
from gemma_alignment.report.html import Content, Html, details, h, join
from gemma_alignment.report.page import page
from gemma_alignment.report.per_seed import FEW
from gemma_alignment.report.plotting import Figure
from gemma_alignment.report.runs import Run, RunKey
from gemma_alignment.report.win_rates import Outcomes

Block = Mapping[str, Any]


def render(
    comparison: Block, runs: Mapping[RunKey, Run], settings: ReportingParameters, outcomes: Outcomes | None = None
) -> str:
    """The whole page.

    Args:
        comparison: every number.
        runs: histories, timings and answers, for the curves and the table of answers.
        settings: how much is shown.
        outcomes: the judge's word on each pair of answers, for that table.
    """
    drawn = draw(comparison, runs, settings)
    body = [
        _first_screen(comparison, settings.title, drawn.first),
        *_parts(comparison, runs, settings, drawn, outcomes or {}),
    ]
    data = {"figures": {one.id: one.spec for one in drawn.all}, "axes": drawn.axes}
    return page(settings.title, join(body), data)


def _first_screen(comparison: Block, title: str, drawn: Sequence[Figure]) -> Html:
    protocol = comparison["protocol"]
    judged = comparison["judge"]["judged"]
    not_judged = (
        None if judged else h("p", "Not judged: ", h("a", "how to have the answers judged", href="#judge"), ".")
    )
    cautions = comparison["cautions"]
    effect = h("p", said) if (said := wording.effect_sentence(comparison)) else None
    beside = [effect, *(h("p", h("b", "Caution: "), one, class_="caution") for one in cautions)]
    count = f"{len(cautions)} reason{'' if len(cautions) == 1 else 's'} for care"
    pointer = h("p", h("b", "Caution: "), h("a", count, href="#beside"), ", below the figures.", class_="pointer")
    return h(
        "header",
        h("p", title, class_="eyebrow"),
        h("h1", wording.question(comparison)),
        h(
            "div",
            h("p", wording.headline(comparison["verdict"], protocol), class_="verdict"),
            h("p", wording.evidence(comparison)),
            pointer if cautions else effect,  # on a phone the figures come before what stands beside
            not_judged,
            class_="card",
        ),
        h("div", *beside, class_="card beside", id="beside") if cautions else None,
        h("div", *(_figure(one, "h2") for one in drawn), class_="grid"),
        class_="first",
    )


def _parts(
    comparison: Block,
    runs: Mapping[RunKey, Run],
    settings: ReportingParameters,
    drawn: Drawn,
    outcomes: Outcomes,
) -> list[Html]:
    protocol = comparison["protocol"]
    pair = (protocol["method_a"], protocol["method_b"])
    rates = any(comparison["win_rates"].values())
    answers = answer_table.answers(runs, pair, outcomes, settings.answers_shown, settings.answer_characters)
    found: list[tuple[str, str, Content]] = [
        ("results", "Results", _results(comparison)),
        ("wins", "Win rates", _win_rates(comparison) if rates else None),
        ("curves", "Learning curves", _curves_part(drawn.curves, drawn.axes)),
        ("drift", "Score, drift and length", _grid(drawn.drift)),
        ("stability", "Stability", _stability(comparison)),
        ("ablations", "Ablations", _ablations(comparison)),
        ("sensitivity", "Sensitivity", _sensitivity(comparison, drawn.sweeps)),
        ("budgets", "At equal budgets", budget_section.tables(comparison)),
        ("cost", "Memory, time and budget", _costs(comparison)),
        ("models", "Data, SFT and reward model", sections.shared_models(comparison)),
        ("reward-model", "The reward model’s card", _with_figures(reward_section.tables(comparison), drawn.reward)),
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
    sources = by_source.table_of(comparison)
    answers, robust = tables.final_answers(comparison), seeds_section.robust(comparison)
    return join(
        [
            tables.results(comparison),
            h(
                "p",
                f"Small figures are the single seeds, in order (of more than {FEW} the least and the largest), and the "
                "bounds of intervals.",
                class_="note",
            ),
            budget_section.spent(comparison),
            details("Tests, each with the least p it can reach", tables.significance(comparison)),
            details("Paired by seed (another scale than d)", tables.paired(comparison)),
            details("The final answers, prompt by prompt", answers) if answers else None,
            details("By the source of the prompts", sources, open_=True) if sources else None,
            details("Interquartile mean and probability of improvement", robust) if robust else None,
        ]
    )


def _win_rates(comparison: Block) -> Html:
    are_few = all(len(block["per_seed"]) <= FEW for block in comparison["win_rates"].values() if block)
    return join(
        [
            win_tables.win_rates(comparison),
            details("Seed by seed", win_tables.win_rates_by_seed(comparison), open_=are_few),
        ]
    )


def _curves_part(curves: Sequence[Figure], axes: Block) -> Html | None:
    if not curves:
        return None
    options = [h("option", label, value=axis) for axis, label in axes["labels"].items()]
    switch = h("label", "x axis ", h("select", *options, id="axis"), class_="no-print")
    note = "Bold: mean over seeds. Faint: each seed. Shaded: least to largest seed."
    return join([h("p", switch), h("p", note, class_="note"), h("div", *map(_figure, curves), class_="grid")])


def _costs(comparison: Block) -> Html | None:
    shown = [one for one in (phases.table_of(comparison), tables.costs(comparison)) if one]
    return join(shown) if shown else None


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


def _figure(one: Figure, heading: str = "h3") -> Html:
    plot = h(
        "div",
        class_="plot",
        data_figure=one.id,
        style=f"height:{one.height}px",
        role="img",
        aria_label=one.title,
    )
    caption = h("figcaption", one.caption) if one.caption else None
    return h("figure", h(heading, one.title), plot, caption)


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
            _mlflow(comparison["mlflow_view"]),
            details("Software that wrote this report", sections.software(comparison)),
        ]
    )


def _mlflow(view: str | None) -> Html | None:
    if view is None:
        return None
    link = h("a", "the arms side by side", href=view)
    return h("p", "Every run stands in MLflow: start its pages by ", h("code", "make ui"), " and open ", link, ".")
