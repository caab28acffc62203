"""Correlation of two measurements, linear and by rank."""

import math

import numpy as np

from gemma_alignment.statistics._numbers import Numbers, as_values, check_confidence, rounding_of, unusable
from gemma_alignment.statistics.intervals import Interval, normal_quantile

LEAST = 4
"""Fisher's interval divides by n - 3."""


def pearson(x: Numbers, y: Numbers, confidence: float = 0.95) -> Interval:
    """Pearson's r with Fisher's interval: tanh(artanh r +- z / sqrt(n - 3)) (Fisher 1921).

    ValueError when the lengths differ; None with a reason below four pairs or without variance.
    """
    return _correlation(as_values(x), as_values(y), confidence, by_rank=False)


def spearman(x: Numbers, y: Numbers, confidence: float = 0.95) -> Interval:
    """Spearman's rho, ties by their mean rank, with the interval of Bonett & Wright 2000.

    As ``pearson`` of the ranks, with the variance (1 + rho^2 / 2) / (n - 3).
    """
    return _correlation(as_values(x), as_values(y), confidence, by_rank=True)


def ranks(values: Numbers) -> np.ndarray:
    """Ranks from 1, equal values sharing the mean of theirs."""
    x = as_values(values)
    ordered = np.sort(x)
    return (np.searchsorted(ordered, x, side="left") + np.searchsorted(ordered, x, side="right") + 1) / 2.0


def _correlation(x: np.ndarray, y: np.ndarray, confidence: float, by_rank: bool) -> Interval:
    check_confidence(confidence)
    if x.size != y.size:
        raise ValueError(f"pairs of values: got {x.size} and {y.size}")
    reason = unusable(x, y, least=LEAST)
    if reason:
        return Interval(reason=reason)
    if min(float(np.std(one)) - rounding_of(one) for one in (x, y)) <= 0.0:
        return Interval(reason="no variance among the values")
    if by_rank:
        x, y = ranks(x), ranks(y)
    a, b = x - x.mean(), y - y.mean()
    r = float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))
    if abs(r) > 1.0 - 1e-12:  # beyond 1, too, by rounding
        return Interval(math.copysign(1.0, r), reason="a perfect correlation has no interval of this kind")
    error = math.sqrt((1.0 + r * r / 2.0 if by_rank else 1.0) / (x.size - 3))
    half = normal_quantile(confidence) * error
    return Interval(r, math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))
