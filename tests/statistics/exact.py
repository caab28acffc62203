"""Reference formulae that only tests need."""

import math
from collections.abc import Sequence

from scipy import stats

from gemma_alignment.statistics.intervals import normal_quantile


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """The exact interval of a proportion, by inverting two binomial tests (Clopper & Pearson 1934)."""
    found = stats.binomtest(successes, n).proportion_ci(confidence, "exact")
    return float(found.low), float(found.high)


def wald(rate: float, error: float, quantile: float) -> tuple[float, float]:
    """rate -+ quantile error, clamped to [0, 1]."""
    return max(0.0, rate - quantile * error), min(1.0, rate + quantile * error)


def agresti_coull(successes: int, n: int) -> tuple[float, float]:
    """Wald with z^2 / 2 added to successes and failures, clamped to [0, 1] (Agresti & Coull 1998)."""
    z2 = normal_quantile(0.95) ** 2
    p = (successes + z2 / 2.0) / (n + z2)
    return wald(p, math.sqrt(p * (1.0 - p) / (n + z2)), math.sqrt(z2))


def wilson_with_continuity(successes: int, n: int) -> tuple[float, float]:
    """Wilson's interval with a continuity correction (Newcombe 1998, method 4)."""
    z, p = normal_quantile(0.95), successes / n

    def end(sign: float) -> float:
        inside = z * z - sign * 2.0 - 1.0 / n + 4.0 * p * (n * (1.0 - p) + sign)
        return (2.0 * n * p + z * z - sign * (1.0 + z * math.sqrt(inside))) / (2.0 * (n + z * z))

    return (0.0 if successes == 0 else end(1.0)), (1.0 if successes == n else end(-1.0))


def bonferroni(p_values: Sequence[float]) -> list[float]:
    """min(1, m p)."""
    return [min(1.0, len(p_values) * p) for p in p_values]


def benjamini_yekutieli(p_values: Sequence[float]) -> list[float]:
    """Benjamini-Hochberg with p times the m-th harmonic number (Benjamini & Yekutieli 2001)."""
    return stats.false_discovery_control(p_values, method="by").tolist()
