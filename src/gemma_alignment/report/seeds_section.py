"""Power, seeds needed and robust aggregates as tables."""

from collections.abc import Mapping
from typing import Any

from gemma_alignment.report.formatting import NONE, bounds, name_of, number, percent
from gemma_alignment.report.html import Column, Content, Html, h, join, table
from gemma_alignment.report.seeds import MORE, how_many

Block = Mapping[str, Any]


def power(comparison: Block) -> Html:
    """Power of the two-sided t test by seeds a method and true d; below it the seeds needed."""
    block = comparison["seeds"]
    columns = [Column("Seeds a method"), *(Column(f"d = {effect:g}", True) for effect in block["effects"])]
    rows: list[list[Content]] = [
        [seeds, *(percent(value, 0) for value in powers)] for seeds, powers in block["table"].items()
    ]
    needed = [f"for {block['power']:.0%} power", *map(how_many, block["needed"], block["effects"])]
    caption = f"Power of the two-sided unpaired t test at the level {block['alpha']:.2g}"
    return table(columns, [*rows, needed], caption)


def seen(comparison: Block) -> Html | None:
    """The seeds that each d seen in this study would need."""
    block = comparison["seeds"]
    if not block["seen"]:
        return None
    columns = [
        Column("If the d seen here is the true one"),
        Column("d", True),
        Column(f"seeds for {block['power']:.0%} power", True),
        Column("over its interval", True, "no largest number where the interval holds 0"),
    ]
    rows = [
        [
            comparison["metrics"][name]["label"],
            number(one["d"], 2),
            how_many(one["seeds"], one["d"]),
            _over_the_interval(one),
        ]
        for name, one in block["seen"].items()
    ]
    return table(columns, rows)


def _over_the_interval(one: Block) -> str:
    if one["fewest"] is None:  # not even at the end that lies farther from 0
        return MORE
    return f"{number(one['fewest'], 0)} {'or more' if one['most'] is None else 'to ' + number(one['most'], 0)}"


def robust(comparison: Block) -> Html | None:
    """Interquartile means and the probability of improvement, where there are enough runs."""
    protocol = comparison["protocol"]
    a, b = protocol["method_a"], protocol["method_b"]
    found = {name: one for name, one in comparison["robust"].items() if one["reason"] is None}
    if not found:
        return None
    columns = [
        Column("Metric"),
        Column(f"{name_of(a)}, interquartile mean", True),
        Column(f"{name_of(b)}, interquartile mean", True),
        Column(f"P({name_of(a)} above {name_of(b)})", True, "a run of the one lies above a run of the other"),
    ]
    rows = [
        [
            comparison["metrics"][name]["label"],
            _interval(one["iqm"][a]),
            _interval(one["iqm"][b]),
            _interval(one["probability_of_improvement"], 2),
        ]
        for name, one in found.items()
    ]
    return table(columns, rows, "Stratified bootstrap over runs")


def _interval(one: Block, decimals: int = 3) -> Html:
    interval = bounds(one["low"], one["high"], decimals)
    return join([h("b", number(one["estimate"], decimals)), h("small", interval) if interval != NONE else None])
