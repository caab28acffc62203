"""Standardised differences between two methods, with exact noncentral-t intervals.

Sources: Cohen 1988; Hedges 1981; Steiger & Fouladi 1997; Cumming & Finch 2001; Lakens 2013.
"""

import math
from dataclasses import dataclass

import numpy as np

from gemma_alignment.statistics._noncentral_t import noncentrality_interval
from gemma_alignment.statistics._numbers import Numbers, as_values, check_confidence, rounding_of, unusable


@dataclass(frozen=True)
class EffectSize:
    """Cohen's d and Hedges' g of two independent groups; the sign is that of a - b."""

    d: float | None = None
    d_low: float | None = None
    d_high: float | None = None
    g: float | None = None
    g_low: float | None = None
    g_high: float | None = None
    df: float | None = None
    reason: str | None = None
    """Why a number is None."""


@dataclass(frozen=True)
class PairedEffect:
    """d_z and g_z of paired values: another scale than d, never to stand in one column with it."""

    d_z: float | None = None
    d_z_low: float | None = None
    d_z_high: float | None = None
    g_z: float | None = None
    g_z_low: float | None = None
    g_z_high: float | None = None
    df: float | None = None
    reason: str | None = None
    """Why a number is None."""


def hedges_correction(df: float | int) -> float | None:
    """J(df) = Gamma(df/2) / (sqrt(df/2) Gamma((df-1)/2)), which takes the bias out of d.

    None below two degrees of freedom, where d has no mean to correct (Hedges 1981).
    """
    return _correction(df) if df >= 2 else None


def _correction(df: float) -> float:
    return math.exp(math.lgamma(df / 2.0) - math.lgamma((df - 1.0) / 2.0)) / math.sqrt(df / 2.0)


def cohens_d(a: Numbers, b: Numbers, confidence: float = 0.95) -> EffectSize:
    """Cohen's d = (mean a - mean b) / s_p with its noncentral-t interval, and g = J(df) d.

    s_p^2 = ((n1-1) s_a^2 + (n2-1) s_b^2) / (n1+n2-2), df = n1+n2-2. The interval of the
    noncentrality of t = d sqrt(n1 n2 / (n1+n2)) is scaled back by sqrt((n1+n2) / (n1 n2)),
    and by J for g. ``a`` and ``b`` hold one number per independent run. ValueError for a
    confidence outside (0, 1); too few values or no variance give None and a reason.
    """
    check_confidence(confidence)
    x, y = as_values(a), as_values(b)
    reason = unusable(x, y)
    if reason:
        return EffectSize(reason=reason)
    df = float(x.size + y.size - 2)
    pooled = math.sqrt(((x.size - 1) * np.var(x, ddof=1) + (y.size - 1) * np.var(y, ddof=1)) / df)
    if pooled <= rounding_of(x, y):
        return EffectSize(df=df, reason="no variance within either group")
    difference = float(np.mean(x) - np.mean(y))
    d = 0.0 if abs(difference) <= rounding_of(x, y) else difference / pooled
    per_root_n = math.sqrt(x.size * y.size / (x.size + y.size))
    low, high = (ncp / per_root_n for ncp in noncentrality_interval(d * per_root_n, df, confidence))
    j = _correction(df)  # two values a group leave df of at least 2
    return EffectSize(d, low, high, j * d, j * low, j * high, df)


def paired_effect(a: Numbers, b: Numbers, confidence: float = 0.95) -> PairedEffect:
    """d_z = mean(D) / s_D of the differences D = a - b, and g_z = J(n-1) d_z.

    t = d_z sqrt(n) with n - 1 degrees of freedom. ValueError when the lengths differ.
    """
    check_confidence(confidence)
    x, y = as_values(a), as_values(b)
    if x.size != y.size:
        raise ValueError(f"paired values need equal lengths, got {x.size} and {y.size}")
    reason = unusable(x, y)
    if reason:
        return PairedEffect(reason=reason)
    differences = x - y
    df = float(x.size - 1)
    spread = float(np.std(differences, ddof=1))
    if spread <= rounding_of(x, y):
        return PairedEffect(df=df, reason="no variance among the paired differences")
    mean = float(np.mean(differences))
    d_z = 0.0 if abs(mean) <= rounding_of(x, y) else mean / spread
    root_n = math.sqrt(x.size)
    low, high = (ncp / root_n for ncp in noncentrality_interval(d_z * root_n, df, confidence))
    j = hedges_correction(df)
    if j is None:
        return PairedEffect(d_z, low, high, df=df, reason="Hedges' correction needs df of at least 2")
    return PairedEffect(d_z, low, high, j * d_z, j * low, j * high, df)
