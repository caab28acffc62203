"""The tables of win rates."""

from collections.abc import Mapping
from typing import Any

from gemma_alignment.report.formatting import NONE, p_value, pair_name, percent, percent_bounds
from gemma_alignment.report.html import Column, Content, Html, h, join, table

Block = Mapping[str, Any]


def win_rates(comparison: Block) -> Html:
    """The rate of each pair over all seeds, with an interval for each kind of repetition."""
    columns = [
        Column("Pair"),
        Column("wins / ties / losses", True, "all seeds together"),
        Column("rate", True, "a tie counts one half; prompts with a verdict in every seed"),
        Column("new prompts, these models", True, "clustered by prompt; below it the bootstrap over prompts"),
        Column("new seeds, these prompts", True, "Student’s t over the seeds’ rates"),
        Column("new prompts and seeds", True, "both errors added; below it two-way, t on the smaller df: wide"),
        Column("rate at equal length", True, "what a fit leaves of the rate when both answers are equally long"),
        Column("seeds × prompts", True),
    ]
    blocks = [block for block in comparison["win_rates"].values() if block and block["crossed"]]
    return table(columns, [_all_seeds(block) for block in blocks])


def _all_seeds(block: Block) -> list[Content]:
    total, crossed = block["total"], block["crossed"]
    prompts, bootstrap, seeds, both, wide = (
        percent_bounds(crossed[kind]["low"], crossed[kind]["high"])
        for kind in ("over_prompts", "over_prompts_bootstrap", "over_seeds", "jointly", "over_both")
    )
    return [
        pair_name(block["a"], block["b"]),
        f"{total['wins']} / {total['ties']} / {total['losses']}",
        h("b", percent(crossed["estimate"])),
        join([prompts, h("small", f"bootstrap {bootstrap}") if bootstrap != NONE else None]),
        seeds,
        join([both, h("small", wide) if wide != NONE else None]),
        _at_equal_length(block["at_equal_length"]),
        f"{crossed['seeds']} × {crossed['prompts']}",
    ]


def _at_equal_length(found: Block) -> Html:
    if found["rate"] is None:
        return h("span", NONE, title=found["reason"])
    return join([h("b", percent(found["rate"])), h("small", percent_bounds(found["low"], found["high"]))])


def win_rates_by_seed(comparison: Block) -> Html:
    """Wins, ties and losses of each pair in each seed: the unit of resampling is the prompt."""
    columns = [
        Column("Pair"),
        Column("seed", True),
        Column("wins / ties / losses", True),
        Column("rate", True, "a tie counts one half"),
        Column("tie-aware interval", True, "over the prompts of this seed"),
        Column("decided", True, "wins among what was decided, Wilson interval"),
        Column("sign test p", True),
        Column("missing", True, "and the rate if all of them were lost or won"),
    ]
    blocks = [block for block in comparison["win_rates"].values() if block]
    return table(columns, [_one_seed(b, seed, one) for b in blocks for seed, one in b["per_seed"].items()])


def _one_seed(block: Block, seed: str, one: Block) -> list[Content]:
    missing = str(one["missing"])
    if one["missing"]:
        missing += f" ({percent_bounds(one['rate_if_missing_lost'], one['rate_if_missing_won'])})"
    decided = join(
        [percent(one["decisive_rate"]), h("small", percent_bounds(one["decisive_low"], one["decisive_high"]))]
    )
    interval = percent_bounds(one["low"], one["high"])
    if one["decisive_rate"] is None and one["half_count_low"] is not None:
        halves = percent_bounds(one["half_count_low"], one["half_count_high"])
        interval = f"{halves} (all ties: Wilson on half counts)"
    return [
        pair_name(block["a"], block["b"]),
        seed,
        f"{one['wins']} / {one['ties']} / {one['losses']}",
        percent(one["rate"]),
        interval,
        decided,
        p_value(one["sign_test_p"]),
        missing,
    ]
