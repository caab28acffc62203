"""The tables of the comparison of two methods."""

from collections.abc import Mapping
from typing import Any

from gemma_alignment.report.budget_section import read_where
from gemma_alignment.report.formatting import (
    NONE,
    bounds,
    name_of,
    number,
    p_value,
    signed,
)
from gemma_alignment.report.html import Column, Content, Html, h, join, table
from gemma_alignment.report.metrics import COSTS, METRICS
from gemma_alignment.report.per_seed import below
from gemma_alignment.report.seeds import how_many
from gemma_alignment.report.wording import reading

Block = Mapping[str, Any]


def results(comparison: Block) -> Html:
    """Every metric: each seed of both methods, the SFT model, difference, d, and what may be said."""
    protocol = comparison["protocol"]
    a, b = protocol["method_a"], protocol["method_b"]
    columns = [
        Column("Metric"),
        Column(name_of(a), True, "mean over seeds; the seeds below it"),
        Column(name_of(b), True, "mean over seeds; the seeds below it"),
        Column("SFT", True, "where both start"),
        Column("Difference", True, f"{name_of(a)} − {name_of(b)}, Welch interval over seeds"),
        Column("Cohen’s d", True, "pooled sd, noncentral-t interval over seeds"),
        Column("Reading", title="from the interval; in the secondary family Holm’s p and the primary outcome too"),
        Column("Read at", title="what had been spent there stands below the table"),
    ]
    rows = [
        [
            metric_name(block),
            _arm(name, block, a),
            _arm(name, block, b),
            number(comparison["baseline"].get(name), _decimals(name)),
            _with_interval(block["difference"], "estimate", "", _decimals(name)),
            _with_interval(block["cohens_d"], "d", "d_", 2),
            reading(block, protocol),
            read_where(block, comparison),
        ]
        for name, block in comparison["metrics"].items()
        if block["role"] != "descriptive" and name != "win_rate"
    ]
    return table(columns, rows)


def metric_name(block: Block) -> Html:
    """Label, unit, and an arrow to the better side."""
    arrow = {True: "↑", False: "↓", None: None}[block["higher_is_better"]]
    better = "higher is better" if block["higher_is_better"] else "lower is better"
    return join(
        [
            block["label"],
            h("span", f" {arrow}", title=better, class_="arrow") if arrow else None,
            h("small", block["unit"]) if block["unit"] else None,
        ]
    )


def _arm(name: str, block: Block, family: str) -> Html:
    return mean_and_seeds(block["mean"].get(family), block["per_seed"].get(family, {}), _decimals(name))


def mean_and_seeds(mean: float | None, per_seed: Mapping[str, float], decimals: int) -> Html:
    """A mean, and below it the seeds."""
    return join([h("b", number(mean, decimals)), below(per_seed, decimals) if per_seed else None])


def _with_interval(part: Block, key: str, prefix: str, decimals: int) -> Html:
    if part[key] is None:
        return h("span", NONE, title=part["reason"])
    interval = bounds(part[f"{prefix}low"], part[f"{prefix}high"], decimals)
    return join([h("b", signed(part[key], decimals)), h("small", interval, title=part["reason"])])


def _decimals(name: str) -> int:
    metric = METRICS.get(name) or COSTS.get(name)
    return metric.decimals if metric else 3


def significance(comparison: Block) -> Html:
    """Welch, Holm and the two exact tests, with what each can reach."""
    columns = [
        Column("Metric"),
        Column("t", True, "Welch’s; for the head-to-head rate one-sample, against 1/2"),
        Column("df", True),
        Column("p", True),
        Column("p, Holm", True, "over the secondary family, from Welch’s p"),
        Column("p, permutation", True),
        Column("p, sign flip", True),
        Column("Hedges’ g", True, "d without its bias at few seeds"),
        Column("80% power from d", True),
        Column("seeds if d is true", True, "seeds a method that the d seen here would need"),
    ]
    rows = [
        [
            metric_name(block),
            number(block["welch"]["statistic"], 2),
            number(block["welch"]["df"], 2),
            p_value(block["welch"]["p"]),
            p_value(block.get("holm_p")),
            p_value(block["permutation"]["p"], block["permutation"]["floor"]),
            p_value(block["sign_flip"]["p"], block["sign_flip"]["floor"]),
            _with_interval(block["cohens_d"], "g", "g_", 2),
            number(block["power"]["least_d"], 2),
            how_many(block["power"]["seeds_needed_for_d_seen"], block["cohens_d"]["d"]),
        ]
        for block in comparison["metrics"].values()
    ]
    return table(columns, rows)


def paired(comparison: Block) -> Html:
    """Pairs of one seed: another scale than d, so a table of its own."""
    columns = [
        Column("Metric"),
        Column("pairs", True),
        Column("mean difference", True),
        Column("d_z", True),
        Column("g_z", True),
    ]
    rows: list[list[Content]] = []
    for name, block in comparison["metrics"].items():
        pair = block["paired"]
        rows.append(
            [
                metric_name(block),
                str(len(pair["seeds"])),
                _with_interval(pair["difference"], "estimate", "", _decimals(name)),
                _with_interval(pair, "d_z", "d_z_", 2),
                _with_interval(pair, "g_z", "g_z_", 2),
            ]
        )
    return table(columns, rows)


def final_answers(comparison: Block) -> Html | None:
    """Metrics of the final answers, with an interval over prompts and one over seeds."""
    protocol = comparison["protocol"]
    a, b = protocol["method_a"], protocol["method_b"]
    columns = [
        Column("Metric"),
        Column(name_of(a), True),
        Column(name_of(b), True),
        Column("SFT", True),
        Column("difference", True),
        Column("new prompts, these models", True),
        Column("new seeds, these prompts", True),
    ]
    rows = []
    for name, block in comparison["metrics"].items():
        over = block.get("over_prompts")
        if not over:
            continue
        decimals = _decimals(name)
        rows.append(
            [
                metric_name(block),
                _arm(name, block, a),
                _arm(name, block, b),
                number(comparison["baseline"].get(name), decimals),
                signed(over["estimate"], decimals),
                bounds(over["over_prompts"]["low"], over["over_prompts"]["high"], decimals),
                bounds(over["over_seeds"]["low"], over["over_seeds"]["high"], decimals),
            ]
        )
    return table(columns, rows) if rows else None


def costs(comparison: Block) -> Html | None:
    """What each method took: mean over seeds and each seed."""
    protocol = comparison["protocol"]
    families = (protocol["method_a"], protocol["method_b"])
    columns = [Column("Cost"), *(Column(name_of(f), True) for f in families)]
    rows = [
        [
            join([block["label"], h("small", block["unit"]) if block["unit"] else None]),
            *(_arm(name, block, family) for family in families),
        ]
        for name, block in comparison["costs"].items()
        if any(block["per_seed"].values())
    ]
    return table(columns, rows) if rows else None
