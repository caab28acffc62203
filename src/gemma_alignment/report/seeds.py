"""What more seeds would show: a table of power, and how many the effects seen here would need."""

import math
from collections.abc import Mapping
from typing import Any

from gemma_alignment.parameters.reporting import ProtocolParameters
from gemma_alignment.report.formatting import number
from gemma_alignment.statistics.power import MAX_SEEDS, power_table, seeds_needed

Block = dict[str, Any]

SEEDS = (3, 4, 5, 6, 8, 10, 20)
EFFECTS = (0.5, 0.8, 1.0, 1.5, 2.0, 3.0)
MORE = f"more than {MAX_SEEDS:,}"
"""What stands where a search for a number of seeds ended without one."""


def seeds_block(metrics: Mapping[str, Block], n: int, protocol: ProtocolParameters) -> Block:
    """Power by seeds and true d, seeds needed by true d, and those that each d seen here would need.

    The d seen is uncertain: the seeds that the ends of its interval would need stand beside it, and
    an interval that holds 0 has no largest number.
    """
    rows = sorted({*SEEDS, *([n] if n > 1 else [])})
    table = power_table(rows, EFFECTS, protocol.alpha)
    return {
        "alpha": protocol.alpha,
        "power": protocol.power,
        "effects": list(EFFECTS),
        "table": {str(seeds): [table[seeds][effect] for effect in EFFECTS] for seeds in rows},
        "needed": [seeds_needed(effect, protocol.power, protocol.alpha) for effect in EFFECTS],
        "first_n": {"permutation": _first_permutation(protocol.alpha), "sign_flip": _first_sign_flip(protocol.alpha)},
        "seen": {
            name: _for_the_effect_seen(block["cohens_d"], protocol)
            for name, block in metrics.items()
            if block["cohens_d"]["d"] is not None
        },
    }


def _for_the_effect_seen(effect: Block, protocol: ProtocolParameters) -> Block:
    def needed(d: float) -> int | None:
        return seeds_needed(d, protocol.power, protocol.alpha)

    low, high = effect["d_low"], effect["d_high"]
    ends = sorted((abs(low), abs(high)))
    return {
        "d": effect["d"],
        "seeds": needed(effect["d"]),
        "fewest": needed(ends[1]),
        "most": None if low <= 0.0 <= high else needed(ends[0]),
        "reason": None if needed(effect["d"]) else why_none(effect["d"]),
    }


def why_none(d: float) -> str:
    """Why no number of seeds a method is given for a true d."""
    return f"{MORE} seeds a method would be needed for a d of {d:g}" if d else "no number of seeds finds a d of 0"


def how_many(seeds: int | None, d: float | None) -> str:
    """Seeds a method for a true d: a number, "more than" the most that were tried, or a dash where d is 0 or None."""
    return MORE if seeds is None and d else number(seeds, 0)


def _first_permutation(alpha: float) -> int:
    """The least n with 2 / C(2n, n) below alpha."""
    n = 2
    while 2.0 / math.comb(2 * n, n) >= alpha:
        n += 1
    return n


def _first_sign_flip(alpha: float) -> int:
    """The least n with 2 / 2^n below alpha."""
    n = 2
    while 2.0 / 2**n >= alpha:
        n += 1
    return n


def what_more_would_show(block: Mapping[str, Any], metric: str, label: str) -> list[str]:
    """Sentences: seeds for the usual sizes of d, for the d seen here, and for the exact tests."""
    pairs = [(e, n) for e, n in zip(block["effects"], block["needed"], strict=True) if e <= 1.0 and n]
    sizes = ", ".join(f"{n} at d = {effect:g}" for effect, n in pairs)
    first = block["first_n"]
    sentences = [
        f"For {block['power']:.0%} power one needs, seeds a method: {sizes}. A p below {block['alpha']:.2g} comes into "
        f"reach of the permutation test with {first['permutation']}, of the sign-flip test with {first['sign_flip']}."
    ]
    seen = block["seen"].get(metric)
    if seen and seen["seeds"] is None and seen["d"]:
        sentences.append(
            f"If the d of {seen['d']:.2g} seen in the {label.lower()} were the true one, {MORE} seeds a method would "
            "be needed to find it with that power."
        )
    elif seen and seen["seeds"]:
        most = f"at least {seen['fewest']}" if seen["most"] is None else f"{seen['fewest']} to {seen['most']}"
        sentences.append(
            f"If the d of {seen['d']:.2f} seen in the {label.lower()} were the true one, {seen['seeds']} seeds a "
            f"method would find it with that power; over its interval, {most}."
        )
    return sentences
