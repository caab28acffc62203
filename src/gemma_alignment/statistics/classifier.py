"""How good a scorer of answers is: does it rank them, and is it as sure as it may be?

Sources: Brier 1950; Bamber 1975; Guo et al. 2017 (arXiv:1706.04599).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gemma_alignment.statistics._numbers import Numbers, as_values
from gemma_alignment.statistics.intervals import wilson


@dataclass(frozen=True)
class Bin:
    """The predictions whose probability lies between two bounds."""

    low: float
    high: float
    n: int
    confidence: float
    """Mean probability."""
    share: float
    """Part that came true."""
    share_low: float
    share_high: float


def brier(probabilities: Numbers, outcomes: Numbers) -> float | None:
    """The mean of (p - outcome)^2; 1/4 is what a constant 1/2 gets. None without predictions."""
    p, y = _predictions(probabilities, outcomes)
    return float(np.mean((p - y) ** 2)) if p.size else None


def reliability(
    probabilities: Numbers, outcomes: Numbers, edges: Sequence[float | int], confidence: float = 0.95
) -> list[Bin]:
    """Predictions by their probability: mean probability, share that came true with Wilson's interval.

    A bin holds its lower edge, the last one both. Empty bins are left out. ValueError for a
    probability outside the edges.
    """
    p, y = _predictions(probabilities, outcomes)
    bounds = np.asarray(edges, dtype=np.float64)
    if p.size and (p.min() < bounds[0] or p.max() > bounds[-1]):
        raise ValueError(f"probabilities lie outside {bounds[0]}..{bounds[-1]}")
    places = np.minimum(np.searchsorted(bounds, p, side="right") - 1, bounds.size - 2)
    found = []
    for i in range(bounds.size - 1):
        inside = places == i
        n = int(inside.sum())
        low, high = wilson(float(y[inside].sum()), n, confidence)
        if low is not None and high is not None:
            ends = float(bounds[i]), float(bounds[i + 1])
            found.append(Bin(*ends, n, float(p[inside].mean()), float(y[inside].mean()), low, high))
    return found


def expected_calibration_error(bins: Sequence[Bin]) -> float | None:
    """The mean over predictions of |share that came true - mean probability| of their bin; None without any."""
    total = sum(one.n for one in bins)
    return math.fsum(one.n * abs(one.share - one.confidence) for one in bins) / total if total else None


def auroc(positive: Numbers, negative: Numbers) -> float | None:
    """P(score of a positive > score of a negative), a tie one half: the area under the ROC curve.

    U / (n1 n2). None when either side is empty.
    """
    x, y = as_values(positive), np.sort(as_values(negative))
    if not x.size or not y.size:
        return None
    below, up_to = np.searchsorted(y, x, side="left"), np.searchsorted(y, x, side="right")
    return float((below + up_to).sum() / 2.0 / (x.size * y.size))


def _predictions(probabilities: Numbers, outcomes: Numbers) -> tuple[np.ndarray, np.ndarray]:
    p, y = as_values(probabilities), as_values(outcomes)
    if p.size != y.size:
        raise ValueError(f"one outcome a prediction: got {p.size} and {y.size}")
    return p, y
