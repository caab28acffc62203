"""How steady a method is: the spread of its seeds, and how far a score fell back on the way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special

from gemma_alignment.statistics._numbers import Numbers, as_values, check_confidence, rounding_of, unusable


@dataclass(frozen=True)
class Spread:
    """How far values of independent runs lie apart."""

    sd: float | None = None
    sd_low: float | None = None
    sd_high: float | None = None
    least: float | None = None
    largest: float | None = None
    df: float | None = None
    reason: str | None = None
    """Why a number is None."""


def spread(values: Numbers, confidence: float = 0.95) -> Spread:
    """The sd with its chi-square interval, and the least and the largest value.

    (n-1) s^2 / sigma^2 is chi-square with n - 1 degrees of freedom for normal values, so the interval is
    s sqrt((n-1) / q) at its upper and lower tail point q: at n = 3 from 0.52 s to 6.28 s.
    """
    check_confidence(confidence)
    x = as_values(values)
    least, largest = (float(f(x)) for f in (np.min, np.max)) if x.size and np.all(np.isfinite(x)) else (None, None)
    reason = unusable(x)
    if reason:
        return Spread(least=least, largest=largest, reason=reason)
    sd, df = float(np.std(x, ddof=1)), float(x.size - 1)
    if sd <= rounding_of(x):
        return Spread(0.0, None, None, least, largest, df, "no variance among the values")
    tail = (1.0 - confidence) / 2.0
    low, high = (sd * math.sqrt(df / float(special.chdtri(df, above))) for above in (tail, 1.0 - tail))
    return Spread(sd, low, high, least, largest, df)


def worst_drawdown(series: Numbers) -> float | None:
    """max over t of (max over u <= t of s_u) - s_t: how far a series once fell below its best until then.

    0 for a series that never falls, None without values. ValueError for a value that is not finite.
    """
    x = as_values(series)
    if not np.all(np.isfinite(x)):
        raise ValueError("a value is not a finite number")
    return float(np.max(np.maximum.accumulate(x) - x)) if x.size else None


def pooled_sd(groups: Sequence[Numbers]) -> float | None:
    """The sd within groups: s^2 = sum (n_i - 1) s_i^2 / sum (n_i - 1). None where no group has two values."""
    arrays = [x for x in map(as_values, groups) if x.size > 1]
    if not arrays:
        return None
    df = sum(x.size - 1 for x in arrays)
    return math.sqrt(sum((x.size - 1) * float(np.var(x, ddof=1)) for x in arrays) / df)
