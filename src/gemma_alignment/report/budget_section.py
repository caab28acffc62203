"""At which budget a number was read, and what equal budgets look like."""

from collections.abc import Mapping
from typing import Any

from gemma_alignment.report.formatting import NONE, bounds, name_of, number, signed
from gemma_alignment.report.html import Column, Content, Html, h, join, table
from gemma_alignment.report.metrics import METRICS

Block = Mapping[str, Any]


def last_iterations(comparison: Block) -> str:
    """The last iteration of the runs that are compared: ``iteration 80``, or a range."""
    protocol = comparison["protocol"]
    found = {
        row["last_iteration"]
        for row in comparison["runs"]
        if row["left_out"] is None and row["family"] in (protocol["method_a"], protocol["method_b"])
    } - {None}
    if not found:
        return "no iteration"
    low, high = min(found), max(found)
    return f"iteration {low}" if low == high else f"iterations {low} to {high}"


def read_where(block: Block, comparison: Block) -> str:
    """At which budget a row of the result table was read."""
    last = last_iterations(comparison)
    return last if block["source"] == "history" else f"answers of {last}"


def spent(comparison: Block) -> Html | None:
    """What had been spent there, method by method."""
    protocol = comparison["protocol"]
    sentences = []
    for family in (protocol["method_a"], protocol["method_b"]):
        parts = [
            f"{number(cost['mean'][family], 0 if cost['mean'][family] >= 100 else 2)} {_NOUNS[name]}"
            for name, cost in comparison["costs"].items()
            if name in _NOUNS and cost["mean"].get(family) is not None
        ]
        if parts:
            sentences.append(f"{name_of(family)}: {', '.join(parts)}.")
    if not sentences:
        return None
    return h("p", f"Spent by {last_iterations(comparison)}, mean over seeds. ", " ".join(sentences), class_="note")


_NOUNS = {
    "budget/responses": "responses",
    "budget/tokens_generated": "million tokens",
    "budget/flops": "· 10¹² operations",
    "budget/seconds": "minutes",
    "memory/peak_mb": "MB at the peak",
}


def tables(comparison: Block) -> Html | None:
    """One table a metric: a row for each kind of budget, read where every run has spent as much."""
    if not comparison["matched"]:
        return None
    made = [_table(METRICS[metric].label, blocks, comparison) for metric, blocks in comparison["matched"].items()]
    note = (
        "Each row is read at the largest budget of its kind that every run reaches, between two evaluations by "
        "linear interpolation; a run that is beyond it from the start has no value there, and then there is neither a "
        "mean of the others nor a difference. They are several views of one curve, so they are described, not tested."
    )
    return join([*made, h("p", note, class_="note")])


def _table(label: str, blocks: list[Block], comparison: Block) -> Html:
    protocol = comparison["protocol"]
    a, b = protocol["method_a"], protocol["method_b"]
    columns = [
        Column(f"{label} at equal …"),
        Column("read at", True),
        Column(name_of(a), True, "mean over seeds; the iterations where the seeds were read"),
        Column(name_of(b), True, "mean over seeds; the iterations where the seeds were read"),
        Column("difference", True, f"{name_of(a)} − {name_of(b)}, Welch interval over seeds"),
        Column("Cohen’s d", True, "noncentral-t interval over seeds"),
    ]
    return table(columns, [_row(block, a, b) for block in blocks])


def _row(block: Block, a: str, b: str) -> list[Content]:
    difference, effect = block["difference"], block["cohens_d"]
    return [
        join([block["label"], h("small", block["reason"]) if block["reason"] else None]),
        _level(block["level"]),
        _arm(block, a),
        _arm(block, b),
        _interval(signed(difference["estimate"]), bounds(difference["low"], difference["high"]), difference["reason"]),
        _interval(signed(effect["d"], 2), bounds(effect["d_low"], effect["d_high"], 2), effect["reason"]),
    ]


def _arm(block: Block, family: str) -> Html:
    """The mean where every seed was read, else the seeds that were."""
    iterations, values, n = block["iterations"][family], block["per_seed"][family], block["n"][family]
    if len(values) < n:
        seeds = [h("small", f"seed {seed}: {number(value)}") for seed, value in values.items()]
        return join([h("span", NONE), h("small", f"{len(values)} of {n} seeds"), *seeds])
    read = "iteration " + " · ".join(number(i, 0) for i in iterations.values())
    return join([h("b", number(block["mean"][family])), h("small", f"{n} seeds"), h("small", read)])


def _level(level: float) -> str:
    if level >= _LARGE:
        return f"{number(level / 1e12, 2)} · 10¹²"
    return number(level, 0 if level >= 100 or level == int(level) else 2)


_LARGE = 1e9
"""From here on a number is shown as a multiple of 10¹²."""


def _interval(value: str, interval: str, reason: str | None) -> Html:
    if value == NONE:
        return h("span", NONE, title=reason)
    return join([h("b", value), h("small", interval, title=reason)])
