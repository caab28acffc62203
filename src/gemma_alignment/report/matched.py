"""Two methods at equal budgets: what each had reached when both had spent, or drifted, as much."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from statistics import fmean
from typing import Any

from gemma_alignment.parameters.reporting import ProtocolParameters
from gemma_alignment.report.curves import AXES, axes_of_run
from gemma_alignment.report.runs import Run, finite
from gemma_alignment.statistics.effect_size import cohens_d
from gemma_alignment.statistics.intervals import welch_difference

Block = dict[str, Any]
ByFamily = Mapping[str, Mapping[int, Run]]

KL = "eval/kl_to_reference"
LABELS = {**{axis: label for axis, (label, _) in AXES.items()}, KL: "KL to the SFT model, nats per response"}
READ = ("eval/score_mean", "eval/gold_mean")
"""The metrics that are read at equal budgets."""


@dataclass(frozen=True)
class Point:
    """One evaluation: what had been spent, and what was reached."""

    spent: float
    value: float
    iteration: float


def matched(by_family: ByFamily, protocol: ProtocolParameters) -> dict[str, list[Block]]:
    """For each metric that every run has: the comparison at the largest budget that every run reaches.

    One block an axis (iterations, responses, tokens, operations, minutes, peak memory, KL). Described
    with intervals over seeds, not tested: these are several views of one curve.
    """
    found = {metric: [_at_equal(by_family, metric, axis, protocol) for axis in LABELS] for metric in READ}
    return {
        metric: [block for block in blocks if block] for metric, blocks in found.items() if any(blocks)
    }  # a metric that some run lacks has no block at all


def _at_equal(by_family: ByFamily, metric: str, axis: str, protocol: ProtocolParameters) -> Block | None:
    points = {
        name: {seed: points_of(run, metric, axis) for seed, run in runs.items()} for name, runs in by_family.items()
    }
    every = [found for runs in points.values() for found in runs.values()]
    if not every or not all(every) or not all(points.values()):
        return None
    level = min(max(point.spent for point in found) for found in every)
    read = {name: {seed: read_at(found, level) for seed, found in runs.items()} for name, runs in points.items()}
    beyond = [f"{name}/seed={seed}" for name, runs in read.items() for seed, point in runs.items() if point is None]
    reason = f"beyond it from the first evaluation on: {', '.join(beyond)}" if beyond else None
    block: Block = {"axis": axis, "label": LABELS[axis], "level": level, "per_seed": {}, "iterations": {}, "mean": {}}
    block |= {"n": {name: len(runs) for name, runs in read.items()}, "reason": reason}
    for name, runs in read.items():
        there = {str(seed): point for seed, point in runs.items() if point is not None}
        block["per_seed"][name] = {seed: point.value for seed, point in there.items()}
        block["iterations"][name] = {seed: point.iteration for seed, point in there.items()}
        block["mean"][name] = fmean(p.value for p in there.values()) if len(there) == len(runs) else None
    # The seeds that can be read at a level are no random ones: a mean of some, or a difference of such, says nothing.
    a, b = ([] if beyond else list(block["per_seed"][name].values()) for name in (protocol.method_a, protocol.method_b))
    block["difference"] = asdict(welch_difference(a, b, protocol.confidence))
    block["cohens_d"] = asdict(cohens_d(a, b, protocol.confidence))
    if beyond:
        for part in ("difference", "cohens_d"):
            block[part]["reason"] = reason
    return block


def points_of(run: Run, metric: str, axis: str) -> list[Point]:
    """The evaluations of a run that have the metric and a place on the axis."""
    values = {int(row["iteration"]): v for row in run.history if (v := finite(row.get(metric))) is not None}
    if axis == KL:
        spent = {int(row["iteration"]): v for row in run.history if (v := finite(row.get(KL))) is not None}
    else:
        spent = axes_of_run(run).get(axis, {})
    return [Point(spent[i], values[i], float(i)) for i in sorted(values) if i in spent]


def read_at(points: Sequence[Point], level: float) -> Point | None:
    """Where the budget first reaches ``level``, between two evaluations by linear interpolation.

    None where the first evaluation is already beyond it, or the last one has not reached it.
    """
    if not points or points[0].spent > level:
        return None
    if points[0].spent == level:
        return points[0]
    for before, after in pairwise(points):
        if before.spent < level <= after.spent:
            share = (level - before.spent) / (after.spent - before.spent)
            value = before.value + share * (after.value - before.value)
            return Point(level, value, before.iteration + share * (after.iteration - before.iteration))
    return None
