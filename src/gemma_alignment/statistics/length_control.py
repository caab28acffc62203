"""A win rate at equal length: what is left of it when the judge's taste for length is taken out."""

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gemma_alignment.statistics._numbers import Numbers, as_values, check_confidence, rounding_of
from gemma_alignment.statistics.intervals import t_quantile

MOST_STEPS = 50
ROUNDING = 1e-14
"""Of a variance on the logit scale."""
BEYOND = 15.0
"""A logit of this size on standardised lengths is a fit that runs off to infinity."""


@dataclass(frozen=True)
class LengthControlled:
    """The rate that the fit expects of two answers of one length."""

    rate: float | None = None
    low: float | None = None
    high: float | None = None
    slope: float | None = None
    """Change of the logit from equal length to a longer answer of A, at most: above 0, longer wins."""
    slope_low: float | None = None
    slope_high: float | None = None
    n: int = 0
    clusters: int = 0
    reason: str | None = None
    """Why a number is None."""


def length_controlled(
    outcomes: Numbers, length_differences: Numbers, clusters: Sequence[Hashable], confidence: float = 0.95
) -> LengthControlled:
    """Fit P(A wins) = sigma(theta + phi tanh(x)), x = (length A - length B) / sd, and give sigma(theta).

    The quasi-likelihood lets a tie be an outcome of one half. The interval is Student's on
    clusters - 1 degrees of freedom, on the logit scale, from the cluster-robust (sandwich)
    variance; the sd of the length differences counts as known.

    Args:
        outcomes: 1, 1/2 or 0 for A.
        length_differences: length of A's answer minus that of B's.
        clusters: what is resampled together, such as the prompt of every comparison.
        confidence: of the interval.

    ValueError for unequal numbers of them. None with a reason where the lengths do not differ or
    the fit has no finite solution (every long answer wins, or everything does).

    Source: Dubois et al. 2024 (arXiv:2404.04475), without its term for the difficulty of a prompt.
    """
    check_confidence(confidence)
    y, raw = as_values(outcomes), as_values(length_differences)
    if not y.size == raw.size == len(clusters):
        raise ValueError(f"one length and cluster an outcome: got {y.size}, {raw.size} and {len(clusters)}")
    _, groups = np.unique(np.array([str(c) for c in clusters]), return_inverse=True)
    count = int(groups.max()) + 1 if groups.size else 0
    nothing = LengthControlled(n=int(y.size), clusters=count)
    if count < 2:
        return replace(nothing, reason=f"{count} clusters: at least 2 are needed")
    spread = float(np.std(raw))
    if spread <= rounding_of(raw):
        return replace(nothing, reason="the difference in length is everywhere the same")
    design = np.column_stack([np.ones(y.size), np.tanh(raw / spread)])
    fitted = _fit(design, y)
    if fitted is None:
        return replace(nothing, reason="no finite fit: lengths, or one side alone, tell every winner")
    theta, phi = (float(value) for value in fitted)
    found = replace(nothing, rate=_sigmoid(theta), slope=phi)
    errors = _robust_errors(design, y, fitted, groups, count)
    if not errors.all():
        return replace(found, reason="no variance around the fit")
    theta_half, phi_half = (float(half) for half in t_quantile(confidence, count - 1.0) * errors)
    return replace(
        found,
        low=_sigmoid(theta - theta_half),
        high=_sigmoid(theta + theta_half),
        slope_low=phi - phi_half,
        slope_high=phi + phi_half,
    )


def _fit(design: np.ndarray, y: np.ndarray) -> np.ndarray | None:
    """Newton's method on the concave quasi-likelihood; None where it has no finite maximum."""
    beta = np.zeros(design.shape[1])
    for _ in range(MOST_STEPS):
        mean = _mean(design, beta)
        weight = mean * (1.0 - mean)
        step = np.linalg.lstsq(design.T @ (design * weight[:, None]), design.T @ (y - mean), rcond=None)[0]
        beta = beta + step
        if np.max(np.abs(beta)) > BEYOND:
            return None
        if np.max(np.abs(step)) < 1e-12:
            return beta
    return None


def _robust_errors(
    design: np.ndarray, y: np.ndarray, beta: np.ndarray, groups: np.ndarray, count: int
) -> np.ndarray:
    """Roots of the diagonal of H^-1 (G/(G-1) sum_g s_g s_g') H^-1, s_g the score of cluster g."""
    mean = _mean(design, beta)
    bread = np.linalg.inv(design.T @ (design * (mean * (1.0 - mean))[:, None]))
    scores = np.zeros((count, design.shape[1]))
    np.add.at(scores, groups, design * (y - mean)[:, None])
    scores[np.abs(scores) < 1e-12] = 0.0
    variance = bread @ (count / (count - 1.0) * scores.T @ scores) @ bread
    # What is only rounding counts as none; it may lie below 0.
    return np.sqrt(np.where(np.diag(variance) > ROUNDING, np.diag(variance), 0.0))


def _mean(design: np.ndarray, beta: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-(design @ beta)))


def _sigmoid(logit: float) -> float:
    return 1.0 / (1.0 + math.exp(-logit))
