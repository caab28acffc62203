"""The curves of a study: one a run, their mean and their range, on any of several x axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gemma_alignment.report.runs import Run, RunKey, finite

MOST_POINTS = 400
"""Longer curves are thinned to so many points, evenly, the last one kept."""

AXES = {
    "iteration": ("Iteration", 1.0),
    "budget/responses": ("Responses sampled", 1.0),
    "budget/tokens_generated": ("Tokens generated", 1.0),
    "budget/flops": ("Floating-point operations", 1.0),
    "budget/seconds": ("Minutes of wall-clock time", 60.0),
    "memory/peak_mb": ("Peak memory so far, MB", 1.0),
}
"""Key of the history or timing -> label and divisor."""


@dataclass(frozen=True)
class Curve:
    """One line: its values at the iterations where it has any."""

    iterations: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Band:
    """The curves of a family's seeds, their mean, least and largest value."""

    family: str
    seeds: dict[int, Curve]
    mean: Curve
    low: Curve
    high: Curve


@dataclass
class Axes:
    """What iteration an x value belongs to, by run or family: ``[name][axis][iteration]``."""

    values: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)

    def offered(self) -> list[str]:
        """The axes that every run has."""
        return [axis for axis in AXES if self.values and all(axis in run for run in self.values.values())]


def curve(run: Run, key: str) -> Curve | None:
    """The values of a key over a run; None where it has none."""
    points = [(int(row["iteration"]), v) for row in run.history if (v := finite(row.get(key))) is not None]
    if not points:
        return None
    step = -(-len(points) // MOST_POINTS)
    kept = points[::step] if (len(points) - 1) % step == 0 else [*points[::step], points[-1]]
    return Curve(tuple(i for i, _ in kept), tuple(v for _, v in kept))


def band(family: str, runs: Mapping[int, Run], key: str) -> Band | None:
    """The curves of one key over the seeds of a family, joined at the iterations that all of them have."""
    seeds = {seed: found for seed, run in runs.items() if (found := curve(run, key))}
    if not seeds:
        return None
    tables = [dict(zip(c.iterations, c.values, strict=True)) for c in seeds.values()]
    common = tuple(sorted(set.intersection(*(set(t) for t in tables))))
    columns = [[t[i] for t in tables] for i in common]
    lines = (tuple(f(c) for c in columns) for f in (_mean, min, max))
    mean, low, high = (Curve(common, line) for line in lines)
    return Band(family, seeds, mean, low, high)


def axes_of(families: Mapping[str, Mapping[int, Run]]) -> Axes:
    """The x values of every run, and their mean over the seeds of each family."""
    axes = Axes()
    for family, runs in families.items():
        singles = [axes_of_run(run) for run in runs.values()]
        for run, single in zip(runs.values(), singles, strict=True):
            axes.values[run.key.name] = single
        if singles:
            shared = [a for a in AXES if all(a in single for single in singles)]
            axes.values[family] = {axis: _mean_axis([single[axis] for single in singles]) for axis in shared}
    return axes


def axes_of_run(run: Run) -> dict[str, dict[int, float]]:
    """The x value of every iteration of a run, by axis; an axis that the run does not have is left out."""
    found: dict[str, dict[int, float]] = {
        "iteration": {int(r["iteration"]): float(r["iteration"]) for r in run.history}
    }
    for axis, (_, divisor) in AXES.items():
        if axis == "iteration":
            continue
        values = {
            int(row["iteration"]): v / divisor
            for rows in (run.history, run.timing)
            for row in rows
            if (v := finite(row.get(axis))) is not None
        }
        if values:
            at_start = {0: 0.0} if axis.startswith("budget/") else {}  # nothing is spent before the first update
            found[axis] = {**at_start, **values}
    return found


def _mean_axis(values: Sequence[Mapping[int, float]]) -> dict[int, float]:
    common = set.intersection(*(set(v) for v in values))
    return {i: _mean([v[i] for v in values]) for i in sorted(common)}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def others(runs: Mapping[RunKey, Run], families: Mapping[str, Mapping[int, Run]]) -> dict[str, dict[int, Run]]:
    """The runs of every other method and variant, by family and seed."""
    found: dict[str, dict[int, Run]] = {}
    for key, run in runs.items():
        if key.seed is not None and key.family not in families and run.history:
            found.setdefault(key.family, {})[key.seed] = run
    return found


def compared(runs: Mapping[RunKey, Run], comparison: Mapping[str, Any]) -> dict[str, dict[int, Run]]:
    """The runs that entered the comparison, by family and seed."""
    protocol = comparison["protocol"]
    names = {row["name"] for row in comparison["runs"] if row["left_out"] is None}
    families: dict[str, dict[int, Run]] = {protocol["method_a"]: {}, protocol["method_b"]: {}}
    for key, run in runs.items():
        if key.family in families and key.seed is not None and key.name in names:
            families[key.family][key.seed] = run
    return families
