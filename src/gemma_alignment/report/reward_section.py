"""The reward model's card as a reader sees it."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from gemma_alignment.report.formatting import NONE, bounds, name_of, number, percent, percent_bounds, signed
from gemma_alignment.report.html import Column, Content, Html, details, h, join, table
from gemma_alignment.report.plotting import COLORS, GREY, Figure, short

Block = Mapping[str, Any]


def tables(comparison: Block) -> Html | None:
    """Every number of the card; None where the reward model left no held-out scores."""
    card = comparison["reward_model_card"]
    if card is None:
        return None
    return join(
        [
            _summary(card),
            table(_ACCURACY, map(_group, card["by_length"])),
            table(_BY_SCORE, map(_group, card["by_written_margin"])),
            details("By source", table(_ACCURACY, map(_group, card["by_source"]))) if card["by_source"] else None,
            _second_judge(card["genrm"]) if card["genrm"] else None,
            _past_the_best(comparison["overoptimization"]),
        ]
    )


_NUMBERS = (Column("pairs", True), Column("prefers the chosen answer", True, "Wilson interval"))
_ACCURACY = (Column("Held-out pairs"), *_NUMBERS)
_BY_SCORE = (Column("By the difference of their written scores", title="quarters within a source"), *_NUMBERS)


def _group(one: Block) -> list[Content]:
    return [one["group"], str(one["n"]), _share(one)]


def _share(one: Block) -> Html:
    interval = percent_bounds(one["low"], one["high"])
    return join([h("b", percent(one["rate"])), h("small", interval) if interval != NONE else None])


def _summary(card: Block) -> Html:
    calibration, length, gold = card["calibration"], card["length"], card["gold"]
    rows: list[tuple[str, str | None, str]] = [
        ("Prefers the chosen answer", _of(card["accuracy"]), f"{card['pairs']} pairs of {card['prompts']} prompts"),
        ("the same, prompts resampled", _interval_of_share(card["accuracy"]["over_prompts"]), "bootstrap"),
        ("Area under the ROC curve", _estimate(card["auroc"]), "any chosen answer against any rejected one"),
        ("Expected calibration error", percent(calibration["ece"]), "of the preferred answer’s probability"),
        ("Brier score", number(calibration["brier"]), "0.25 is that of a constant one half"),
        ("Prefers the longer answer", _of(length["prefers_longer"]), "where lengths differ"),
        ("the longer answer is the chosen one", _of(length["chosen_longer"]), "in the data"),
        ("Score and length, Spearman’s ρ", _estimate(length["spearman"]), "over all answers"),
        ("Score and length, Pearson’s r", _estimate(length["pearson"]), "over all answers"),
        ("Differences of score and length, ρ", _estimate(length["of_differences"]), "over pairs"),
    ]
    if gold:
        rows += [
            ("Prefers the truly better answer", _of(gold["model"]), f"{gold['pairs']} pairs of unequal gold"),
            (
                "the data’s label does",
                _of(gold["written"]),
                "agreement of noise-free gold order and noisy labels",
            ),
            ("Score and true quality, ρ", _estimate(gold["spearman"]), "over all answers"),
        ]
    columns = [Column("Reward model, held-out pairs"), Column("value", True), Column("of")]
    return table(columns, [[name, value, of] for name, value, of in rows])


def _of(share: Block) -> str:
    return f"{percent(share['rate'])} ({percent_bounds(share['low'], share['high'])})"


def _interval_of_share(interval: Block) -> str:
    if interval["estimate"] is None:
        return f"not estimable: {interval['reason']}"
    return f"{percent(interval['estimate'])} ({percent_bounds(interval['low'], interval['high'])})"


def _estimate(interval: Block) -> str:
    if interval["estimate"] is None:
        return f"not estimable: {interval['reason']}"
    return f"{number(interval['estimate'])} {bounds(interval['low'], interval['high'])}"


def _second_judge(genrm: Block) -> Html:
    """The SFT model's own reading of the same pairs."""
    said, kappa, read = genrm["prefers_chosen"], genrm["with_reward_model"], genrm["read"]
    rate = f"{percent(said['rate'])} ({percent_bounds(said['low'], said['high'])})"
    counts = f"{said['wins']} / {said['ties']} / {said['losses']}"
    agrees = f"{percent(kappa['agreement'])} of {kappa['n']} decided pairs ({_kappa(kappa)})"
    rows = [
        ["Replies whose score could be read", f"{_of(read)}: {read['count']} of {read['n']}"],
        ["Prefers the chosen answer, a tie one half", _unless(said["rate"] is None, said["reason"], rate)],
        ["wins / ties / losses", _unless(said["rate"] is None, said["reason"], counts)],
        ["Prefers what the reward model prefers", _unless(kappa["agreement"] is None, kappa["reason"], agrees)],
        ["Its score and the written one, chosen answers, ρ", _estimate(genrm["with_written"])],
    ]
    caption = f"The SFT model asked for “Score: x/10”, {genrm['pairs']} pairs; it was trained on chosen answers alone"
    return table([Column("Second judge of the same pairs"), Column("value", True)], rows, caption)


def _kappa(kappa: Block) -> str:
    return f"κ not estimable: {kappa['reason']}" if kappa["kappa"] is None else f"κ {number(kappa['kappa'], 2)}"


def _unless(is_open: bool, reason: str, text: str) -> str:
    return f"not estimable: {reason}" if is_open else text


def _past_the_best(found: Block | None) -> Html | None:
    if not found:
        return None
    columns = [
        Column("Over-optimisation"),
        Column("score, first → last", True),
        Column("true quality, first → last", True),
        Column("largest true quality", True, "at any evaluation: the largest of noisy values, so it only describes"),
        Column("last − largest", True),
    ]
    rows = [_past(f"{name_of(name)}, seed {seed}", one) for name, runs in found.items() for seed, one in runs.items()]
    return table(columns, rows)


def _past(name: str, one: Block) -> list[Content]:
    first, best, last = one["first"], one["best"], one["last"]
    return [
        name,
        f"{number(first['score'], 2)} → {number(last['score'], 2)}",
        f"{number(first['gold'], 2)} → {number(last['gold'], 2)}",
        f"{number(best['gold'], 2)} (iteration {best['iteration']}, √KL {number(best['sqrt_kl'], 2)})",
        signed(one["past_best"], 2),
    ]


def figures(card: Block | None) -> list[Figure]:
    """The margins' histogram and the reliability curve."""
    return [] if card is None else [_margins(card["margins"]), _reliability(card["calibration"])]


def _margins(margins: Block) -> Figure:
    edges, counts = margins["edges"], margins["counts"]
    middles = [(a + b) / 2 for a, b in pairwise(edges)]
    trace = {
        "type": "bar",
        "x": [short(x) for x in middles],
        "y": counts,
        "width": short(edges[1] - edges[0]),
        "marker": {"color": [COLORS[0] if x > 0 else COLORS[1] for x in middles]},
        "hovertemplate": "%{y} pairs<extra></extra>",
    }
    layout = {
        "xaxis": {"title": {"text": "output of the chosen − of the rejected answer"}},
        "yaxis": {"title": {"text": "held-out pairs"}},
        "showlegend": False,
        "bargap": 0,
        "margin": {"l": 58, "r": 12, "t": 8, "b": 44},
    }
    caption = "Above 0 the reward model prefers the chosen answer. σ of the difference is the probability it states."
    return Figure("rm-margins", "Margins of the reward model", caption, {"data": [trace], "layout": layout})


def _reliability(calibration: Block) -> Figure:
    bins: Sequence[Block] = calibration["reliability"]
    points = {
        "type": "scatter",
        "mode": "lines+markers",
        "name": "reward model",
        "x": [short(one["confidence"]) for one in bins],
        "y": [short(one["share"]) for one in bins],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [short(one["share_high"] - one["share"]) for one in bins],
            "arrayminus": [short(one["share"] - one["share_low"]) for one in bins],
            "thickness": 1,
            "width": 3,
        },
        "line": {"color": COLORS[0], "width": 1.5},
        "text": [f"{one['n']} pairs" for one in bins],
        "hovertemplate": "states %{x:.2f}, right %{y:.2f}<br>%{text}<extra></extra>",
    }
    ideal = {
        "type": "scatter",
        "mode": "lines",
        "name": "as sure as it may be",
        "x": [0.5, 1.0],
        "y": [0.5, 1.0],
        "line": {"dash": "dot", "color": GREY, "width": 1.5},
        "hoverinfo": "skip",
    }
    layout = {
        "xaxis": {"title": {"text": "probability stated for the preferred answer"}, "range": [0.48, 1.02]},
        "yaxis": {"title": {"text": "share that is the chosen one"}, "range": [0, 1.05]},
        "margin": {"l": 58, "r": 12, "t": 8, "b": 44},
    }
    caption = "Below the dotted line the reward model is surer than it may be. Bars are Wilson intervals."
    return Figure("rm-reliability", "Reliability", caption, {"data": [ideal, points], "layout": layout})
