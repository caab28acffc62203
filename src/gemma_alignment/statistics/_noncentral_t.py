"""The distribution function of the noncentral t, also where scipy's gives up."""

import math
from collections.abc import Callable

from scipy import integrate, optimize, special

MOST_DOUBLINGS = 60
"""Of a step in search of a bracket: by then it has grown 10^18-fold."""


def cdf(t: float | int, df: float | int, ncp: float | int) -> float:
    """P(T <= t) for T = (Z + ncp) / sqrt(V / df), Z standard normal and V chi-square.

    scipy's series returns NaN in some far tails; there the definition is integrated:
    the mean over s = sqrt(V / df) of Phi(t s - ncp).
    """
    value = float(special.nctdtr(df, ncp, t))
    return value if math.isfinite(value) else _by_quadrature(t, df, ncp)


def _by_quadrature(t: float | int, df: float | int, ncp: float | int) -> float:
    log_scale = math.log(2.0) + (df / 2.0) * math.log(df / 2.0) - math.lgamma(df / 2.0)

    def integrand(s: float) -> float:
        if s <= 0.0:
            return 0.0
        density = math.exp(log_scale + (df - 1.0) * math.log(s) - df * s * s / 2.0)
        return float(special.ndtr(t * s - ncp)) * density

    top = 1.0 + 12.0 / math.sqrt(2.0 * df) + 12.0 / df
    step = ncp / t if t != 0.0 else 1.0
    points = sorted({p for p in (1.0, step) if 0.0 < p < top})
    value, _ = integrate.quad(integrand, 0.0, top, points=points, limit=400, epsabs=1e-13, epsrel=1e-11)
    return min(1.0, max(0.0, float(value)))


def noncentrality_interval(t: float, df: float, confidence: float) -> tuple[float, float]:
    """The noncentralities under which ``t`` is the upper and the lower tail point.

    Solves F(t; df, ncp) = 1 - alpha/2 for the lower end and = alpha/2 for the upper
    (Steiger & Fouladi 1997; Cumming & Finch 2001).
    """
    tail = (1.0 - confidence) / 2.0
    return _solve(t, df, 1.0 - tail), _solve(t, df, tail)


def beyond(reached: Callable[[float], bool], start: float, step: float) -> float:
    """The first of start, start + step, start + 3 step, start + 7 step, … at which ``reached`` holds.

    ValueError after 60 of them: a search that has no end is an error of its own.
    """
    for doublings in range(MOST_DOUBLINGS):
        at = start + (2.0**doublings - 1.0) * step
        if reached(at):
            return at
    raise ValueError(f"nothing found from {start:g} in {MOST_DOUBLINGS} doublings of a step of {step:g}")


def _solve(t: float, df: float, level: float) -> float:
    step = 1.0 + abs(t)
    low = beyond(lambda ncp: cdf(t, df, ncp) >= level, t - 1.0, -step)
    high = beyond(lambda ncp: cdf(t, df, ncp) <= level, t + 1.0, step)
    return float(optimize.brentq(lambda ncp: cdf(t, df, ncp) - level, low, high, xtol=1e-13, rtol=1e-14))
