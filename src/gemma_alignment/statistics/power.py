"""What a number of seeds or prompts can show, and how many a difference needs."""

import math
from bisect import bisect_left
from collections.abc import Sequence

from scipy import optimize

from gemma_alignment.statistics import _noncentral_t
from gemma_alignment.statistics.intervals import normal_quantile, t_quantile

MAX_SEEDS = 10_000
"""Where the search for a number of seeds ends: what needs more is reported as "more than 10,000"."""


def unpaired_power(d: float | int, n: int, alpha: float = 0.05) -> float:
    """Power of the two-sided t test with ``n`` runs a method at a true Cohen's d.

    P(|T| > t_crit) with T noncentral t, df = 2n - 2, ncp = d sqrt(n/2).
    """
    _check(n)
    return _power(abs(d) * math.sqrt(n / 2.0), 2.0 * n - 2.0, alpha)


def paired_power(d_z: float | int, n: int, alpha: float = 0.05) -> float:
    """Power of the two-sided paired t test over ``n`` pairs at a true d_z: df = n - 1, ncp = d_z sqrt(n)."""
    _check(n)
    return _power(abs(d_z) * math.sqrt(n), n - 1.0, alpha)


def least_effect(n: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """The least true d that ``n`` runs a method find with the given power."""
    _check(n)
    if not alpha < power < 1.0:
        raise ValueError(f"power must lie between alpha and 1, got {power}")
    high = _noncentral_t.beyond(lambda d: unpaired_power(d, n, alpha) >= power, 1.0, 1.0)
    return float(optimize.brentq(lambda d: unpaired_power(d, n, alpha) - power, 0.0, high))


def power_table(
    seeds: Sequence[int], effects: Sequence[float | int], alpha: float = 0.05
) -> dict[int, dict[float, float]]:
    """Power of the two-sided unpaired t test: seeds a method -> true d -> power."""
    return {n: {float(d): unpaired_power(d, n, alpha) for d in effects} for n in seeds}


def seeds_needed(d: float | int, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """The least number of runs a method with the given power at a true d, from 2 to 10,000.

    None when 10,000 are too few: d is 0, or so small that no study could afford to look for it.
    """
    if d == 0:
        return None
    sizes = range(2, MAX_SEEDS + 1)
    place = bisect_left(sizes, power, key=lambda n: unpaired_power(d, n, alpha))
    return sizes[place] if place < len(sizes) else None


def prompts_needed(rate: float, power: float = 0.8, alpha: float = 0.05) -> int | None:
    """How many prompts without ties tell a win rate from 1/2 (normal approximation).

    n = ((z_{alpha/2} / 2 + z_power sqrt(p(1-p))) / (p - 1/2))^2, rounded up; None at 1/2.
    """
    if not 0.0 <= rate <= 1.0:
        raise ValueError(f"a rate lies between 0 and 1, got {rate}")
    if rate == 0.5:
        return None
    spread = normal_quantile(1.0 - alpha) * 0.5
    spread += normal_quantile(2.0 * power - 1.0) * math.sqrt(rate * (1.0 - rate))
    return math.ceil((spread / (rate - 0.5)) ** 2)


def _power(ncp: float, df: float, alpha: float) -> float:
    critical = t_quantile(1.0 - alpha, df)
    # The upper tail by symmetry: 1 - F(t) would lose it where F is near 1.
    upper = _noncentral_t.cdf(-critical, df, -ncp)
    return min(1.0, upper + _noncentral_t.cdf(-critical, df, ncp))


def _check(n: int) -> None:
    if n < 2:
        raise ValueError(f"a t test needs at least 2 runs a method, got {n}")
