"""The tables of stability, ablations and sensitivity."""

from collections.abc import Mapping, Sequence
from typing import Any

from gemma_alignment.report.formatting import NONE, bounds, name_of, number, setting, signed
from gemma_alignment.report.html import Column, Content, Html, h, join, table
from gemma_alignment.report.metrics import METRICS
from gemma_alignment.report.tables import mean_and_seeds
from gemma_alignment.report.wording import reading

Block = Mapping[str, Any]


def stability(comparison: Block) -> Html | None:
    """The final score over seeds and the worst drawdown of each method and variant."""
    columns = [
        Column("Runs"),
        Column("final score", True, "held-out prompts: mean over seeds; the seeds below it"),
        Column("sd over seeds", True, "with its chi-square interval"),
        Column("least to largest", True, "over seeds"),
        Column("worst drawdown, held-out", True, "largest fall below the best score until then; the seeds below it"),
        Column("worst drawdown, training", True, "the same on training prompts: it holds the noise of each batch"),
    ]
    blocks = comparison["stability"]
    return table(columns, [_stable(block) for block in blocks]) if blocks else None


def _stable(block: Block) -> list[Content]:
    decimals = METRICS[block["metric"]].decimals
    span = f"{number(block['least'], decimals)} to {number(block['largest'], decimals)}"
    sd, n = number(block["sd"], decimals), f"n = {len(block['per_seed'])}, "
    return [
        name_of(block["family"]),
        mean_and_seeds(block["mean"], block["per_seed"], decimals),
        _estimate(sd, block["sd_low"], block["sd_high"], block["reason"], decimals, n),
        NONE if block["least"] is None else span,
        *(mean_and_seeds(one["worst"], one["per_seed"], decimals) for one in block["drawdown"].values()),
    ]


def factor(block: Block, over_values: bool) -> Html:
    """Every value of one parameter; below them how far the means lie apart, if asked for."""
    names = list(block["over_values"])
    columns = [Column(f"{name_of(block['method'])}, {block['parameter']}")]
    columns += [Column(METRICS[name].label, True, METRICS[name].unit) for name in names]
    rows = [[_value(one, block), *(_cell(one, name, block["method"]) for name in names)] for one in block["values"]]
    if over_values:
        head = join(["Largest − least mean", h("small", "seeds that all values have")])
        rows.append([head, *(_between(block["over_values"][name], name) for name in names)])
    return table(columns, rows)


def _value(one: Block, block: Block) -> Html:
    note = "configured" if one["family"] == block["method"] else name_of(one["family"])
    return join([setting(one["value"]), h("small", note)])


def _cell(one: Block, name: str, method: str) -> Html:
    block, decimals = one["metrics"][name], METRICS[name].decimals
    shown = mean_and_seeds(block["mean"], block["per_seed"], decimals)
    if (difference := block.get("difference")) is None:
        return shown
    change = _estimate(
        signed(difference["estimate"], decimals),
        difference["low"],
        difference["high"],
        difference["reason"],
        decimals,
    )
    said = reading(block, {"method_a": one["family"], "method_b": method, "confidence": block["confidence"]})
    return join([shown, change, h("small", said)])


def _estimate(
    text: str, low: float | None, high: float | None, reason: str | None, decimals: int, before: str = ""
) -> Html:
    """A number with its interval and what stands ``before`` that, or with the reason why it has none."""
    if low is None or high is None:
        return join([text, h("small", f"interval not estimable: {reason}", class_="reason")])
    return join([text, h("small", before + bounds(low, high, decimals))])


def _between(block: Block, name: str) -> Html:
    decimals = METRICS[name].decimals
    seeds = len(block["seeds"])
    within = f"{seeds} seed{'' if seeds == 1 else 's'}, sd at one value {number(block['sd_within'], decimals)}"
    return join([h("b", number(block["range_of_means"], decimals)), h("small", within)])


def left_out(rows: Sequence[Block]) -> Html:
    """Variants that no section describes, and why."""
    return table([Column("Variant"), Column("Why it has no section")], [[row["what"], row["reason"]] for row in rows])
