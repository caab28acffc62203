"""Which figures a study has: for the page, and for the pictures beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gemma_alignment.parameters.reporting import ReportingParameters
from gemma_alignment.report import figures, learning, reward_section
from gemma_alignment.report.curves import axes_of, compared, others
from gemma_alignment.report.plotting import Figure
from gemma_alignment.report.runs import Run, RunKey
from gemma_alignment.report.variants import described

Block = Mapping[str, Any]


@dataclass(frozen=True)
class Drawn:
    """The figures of the page, by the section that they stand in."""

    first: list[Figure]
    curves: list[Figure]
    drift: list[Figure]
    sweeps: list[Figure]
    reward: list[Figure]
    axes: Block
    """The x axes on offer for the curves."""

    @property
    def all(self) -> list[Figure]:
        """In the order of the page."""
        return [*self.first, *self.curves, *self.drift, *self.sweeps, *self.reward]


def draw(comparison: Block, runs: Mapping[RunKey, Run], settings: ReportingParameters) -> Drawn:
    """Every figure that these runs have.

    Args:
        comparison: every number.
        runs: histories, timings and answers.
        settings: how many points are shown.
    """
    families = compared(runs, comparison)
    further = {name: found for name, found in others(runs, families).items() if name not in described(comparison)}
    axes = axes_of({**families, **further})
    first = [figures.forest(comparison), figures.win_bars(comparison)]
    drift = [
        figures.frontier(families, "eval/gold_mean" in comparison["metrics"]),
        figures.length_and_score(families, settings.points_shown),
    ]
    return Drawn(
        first=[one for one in first if one],
        curves=learning.learning_curves({**families, **further}, axes, on_request=further),
        drift=[one for one in drift if one],
        sweeps=figures.sweeps(comparison),
        reward=reward_section.figures(comparison["reward_model_card"]),
        axes=learning.axis_values(axes),
    )
