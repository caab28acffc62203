"""How long a study takes on several GPUs: its runs placed one after the other, as a scheduler would."""

import heapq
from collections.abc import Sequence

GPUS = (1, 2, 8, 64)
"""For which a dry run says it."""


def makespan(lengths: Sequence[float], places: int) -> float:
    """When the last of ``lengths`` is over, each begun in order as soon as one of ``places`` is free.

    Graham's list scheduling (1969, doi:10.1137/0117039): at most 2 − 1/places times the shortest possible.
    """
    free = [0.0] * max(1, min(places, len(lengths)))
    for length in lengths:
        heapq.heapreplace(free, free[0] + length)
    return max(free)


def wall_hours(
    preparation: float, runs: Sequence[float], gpus: int, efficiency: float, most: int
) -> tuple[float, int]:
    """Hours until the last run is over, and how many GPUs each has: more than one where there are more than runs.

    Args:
        preparation: hours before the runs, on one GPU.
        runs: hours of each on one GPU.
        gpus: all that there are.
        efficiency: what p GPUs do in one run, as a part of p times what one does.
        most: the most GPUs that a run can use.
    """
    each = max(1, min(gpus // len(runs), most))
    speed = each * efficiency if each > 1 else 1.0
    if speed < 1:
        each, speed = 1, 1.0
    return preparation + makespan([hours / speed for hours in runs], gpus // each), each


def said(preparation: float, runs: Sequence[float], efficiency: float, most: int) -> str:
    """The hours on several numbers of GPUs with what they assume, in words."""
    times = []
    for gpus in GPUS:
        hours, each = wall_hours(preparation, runs, gpus, efficiency, most)
        times.append(f"{gpus} GPU{'s' if gpus > 1 else ''} {hours:.1f}" + (f" ({each} a run)" if each > 1 else ""))
    return (
        f"hours: {', '.join(times)}; {preparation:.1f} of them are preparation, on one GPU. A run has one GPU, or "
        f"several where there are more than runs (--processes-per-run), assumed to do {efficiency:g} of as many times "
        "one's work; queues, evaluation and report come on top"
    )
