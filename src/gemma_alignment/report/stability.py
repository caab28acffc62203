"""How steady each method and variant was: over its seeds, and in the course of its training."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from gemma_alignment.parameters.reporting import ProtocolParameters
from gemma_alignment.report.comparing import NEW_SEEDS, Block, describe, summary
from gemma_alignment.report.metrics import METRICS
from gemma_alignment.report.runs import Run, finite
from gemma_alignment.report.variants import eligible, families_of
from gemma_alignment.statistics.stability import spread, worst_drawdown

SCORE = METRICS["eval/score_mean"]
CURVES = ("eval/score_mean", "reward/score_mean")
"""The score on the held-out prompts, the same ones every time, and on each iteration's training prompts."""


def stability_blocks(runs: Mapping[Any, Run], protocol: ProtocolParameters) -> list[Block]:
    """One block a method and variant: the final score over seeds, and the worst drawdown of each seed."""
    found = families_of(runs)
    compared = [name for name in (protocol.method_a, protocol.method_b) if name in found]
    ordered = dict.fromkeys([*compared, *found])
    return [_block(family, eligible(runs, family), protocol) for family in ordered]


def _block(family: str, members: Mapping[int, Run], protocol: ProtocolParameters) -> Block:
    final = {seed: v for seed, run in members.items() if (v := SCORE.value(run)) is not None}
    return {
        "family": family,
        "metric": SCORE.name,
        **describe(SCORE, protocol.confidence),
        "unit_of_resampling": "seed",
        "generalises_to": NEW_SEEDS,
        "per_seed": {str(seed): v for seed, v in final.items()},
        **summary(list(final.values())),
        **asdict(spread(list(final.values()), protocol.confidence)),
        "method": "chi-square interval of the sd",
        "drawdown": {key: _drawdown(members, key) for key in CURVES},
    }


def _drawdown(members: Mapping[int, Run], key: str) -> Block:
    """max over t of (best score until t - score at t), of each seed and the worst of them."""
    series = {
        seed: [v for row in run.history if (v := finite(row.get(key))) is not None] for seed, run in members.items()
    }
    found = {seed: fall for seed, values in series.items() if (fall := worst_drawdown(values)) is not None}
    return {"per_seed": {str(seed): fall for seed, fall in found.items()}, "worst": max(found.values(), default=None)}
