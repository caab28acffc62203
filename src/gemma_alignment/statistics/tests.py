"""Tests of no difference, each with the least p it can reach at its n."""

import itertools
import math
from dataclasses import dataclass

import numpy as np
from scipy import special

from gemma_alignment.statistics._numbers import Numbers, as_values, rounding_of, unusable

MAX_EXACT_SPLITS = 200_000
"""Up to this many splits or sign patterns a test is enumerated; beyond, it is drawn."""


@dataclass(frozen=True)
class Significance:
    """A two-sided p beside the least p that its test can give."""

    statistic: float | None = None
    p: float | None = None
    floor: float | None = None
    """The least two-sided p at this n; 0 for a test on a continuous scale."""
    df: float | None = None
    p_one_sided: float | None = None
    """The p of "a is larger"; only for the permutation test."""
    reason: str | None = None
    """Why a number is None."""


def student(a: Numbers, b: Numbers) -> Significance:
    """Student's t test with a pooled variance, df = n1 + n2 - 2."""
    x, y = as_values(a), as_values(b)
    reason = unusable(x, y)
    if reason:
        return Significance(reason=reason)
    df = float(x.size + y.size - 2)
    pooled = float(((x.size - 1) * np.var(x, ddof=1) + (y.size - 1) * np.var(y, ddof=1)) / df)
    error = math.sqrt(pooled * (1.0 / x.size + 1.0 / y.size))
    return _from_t(x, y, error, df)


def welch(a: Numbers, b: Numbers) -> Significance:
    """Welch's t test with the Welch-Satterthwaite df: variances not taken as equal."""
    x, y = as_values(a), as_values(b)
    reason = unusable(x, y)
    if reason:
        return Significance(reason=reason)
    v_x, v_y = float(np.var(x, ddof=1)) / x.size, float(np.var(y, ddof=1)) / y.size
    share = v_x / (v_x + v_y) if v_x + v_y > 0.0 else 0.5
    df = 1.0 / (share**2 / (x.size - 1) + (1.0 - share) ** 2 / (y.size - 1))
    return _from_t(x, y, math.sqrt(v_x + v_y), df)


def paired_student(a: Numbers, b: Numbers) -> Significance:
    """Student's t test of the differences a - b, df = n - 1."""
    x, y = as_values(a), as_values(b)
    if x.size != y.size:
        raise ValueError(f"paired values need equal lengths, got {x.size} and {y.size}")
    reason = unusable(x, y)
    if reason:
        return Significance(reason=reason)
    error = float(np.std(x - y, ddof=1)) / math.sqrt(x.size)
    return _from_t(x, y, error, float(x.size - 1))


def permutation(
    a: Numbers, b: Numbers, generator: np.random.Generator | None = None, draws: int = 20_000
) -> Significance:
    """The share of relabellings whose mean difference is at least as far from 0 as the one seen.

    All C(n1+n2, n1) splits are enumerated up to 200,000; beyond, ``draws`` shuffles of
    ``generator`` are counted with the observed one among them, and without a generator the
    result is None with the reason. Ties within rounding count as "at least as far".
    """
    x, y = as_values(a), as_values(b)
    reason = unusable(x, y)
    if reason:
        return Significance(reason=reason)
    # Centred, so that a shift of all values cannot move a tie across the tolerance.
    values = np.concatenate([x, y])
    values = values - values.mean()
    tolerance = rounding_of(x, y)
    observed = _split_difference(values[None, : x.size].sum(1), x.size, y.size)[0]
    splits = math.comb(values.size, x.size)
    if splits <= MAX_EXACT_SPLITS:
        picks = np.array(list(itertools.combinations(range(values.size), x.size)))
        sums = values[picks].sum(1)
        floor = (2.0 if x.size == y.size else 1.0) / splits
        extra, count = 0, splits
    elif generator is None:
        return Significance(reason=f"{splits} splits are too many to enumerate: pass a generator")
    else:
        sums = np.array([generator.permutation(values)[: x.size].sum() for _ in range(draws)])
        extra, count = 1, draws + 1
        floor = 1.0 / count
    differences = _split_difference(sums, x.size, y.size)
    p = (extra + int(np.sum(np.abs(differences) >= abs(observed) - tolerance))) / count
    one_sided = (extra + int(np.sum(differences >= observed - tolerance))) / count
    return Significance(float(observed), p, floor, p_one_sided=one_sided)


def sign_flip(
    a: Numbers, b: Numbers, generator: np.random.Generator | None = None, draws: int = 20_000
) -> Significance:
    """The share of sign patterns of the differences a - b whose mean is at least as far from 0.

    All 2^n patterns are enumerated up to 200,000 (n = 17), beyond that drawn as in
    ``permutation``. The floor is 2 / 2^n. ValueError when the lengths differ.
    """
    x, y = as_values(a), as_values(b)
    if x.size != y.size:
        raise ValueError(f"paired values need equal lengths, got {x.size} and {y.size}")
    reason = unusable(x, y)
    if reason:
        return Significance(reason=reason)
    differences = x - y
    observed = float(differences.mean())
    if 2**x.size <= MAX_EXACT_SPLITS:
        signs = np.array(list(itertools.product((1.0, -1.0), repeat=x.size)))
        extra, count, floor = 0, 2**x.size, 2.0 / 2**x.size
    elif generator is None:
        return Significance(reason=f"{2**x.size} sign patterns are too many to enumerate: pass a generator")
    else:
        signs = generator.choice(np.array([1.0, -1.0]), size=(draws, x.size))
        extra, count, floor = 1, draws + 1, 1.0 / (draws + 1)
    means = np.abs((signs * differences).mean(axis=1))
    p = (extra + int(np.sum(means >= abs(observed) - rounding_of(x, y)))) / count
    return Significance(observed, p, floor)


def sign_test(wins: int, losses: int) -> Significance:
    """Exact two-sided binomial test of wins against losses at 1/2; ties are left out.

    p = min(1, 2 P(X <= min(wins, losses))) with X ~ Bin(wins + losses, 1/2); floor 2 / 2^n.
    """
    if wins < 0 or losses < 0:
        raise ValueError(f"counts cannot be negative, got {wins} and {losses}")
    n = wins + losses
    if n == 0:
        return Significance(reason="no decided comparison")
    p = min(1.0, 2.0 * float(special.bdtr(min(wins, losses), n, 0.5)))
    return Significance(float(wins), p, 2.0 * 0.5**n)


def _split_difference(sums: np.ndarray, n_a: int, n_b: int) -> np.ndarray:
    """Mean difference from the sum of the first group, the values being centred on 0."""
    return sums / n_a + sums / n_b


def _from_t(x: np.ndarray, y: np.ndarray, error: float, df: float) -> Significance:
    if error <= rounding_of(x, y):
        return Significance(df=df, reason="no variance within the groups")
    difference = float(np.mean(x) - np.mean(y))
    if abs(difference) <= rounding_of(x, y):
        difference = 0.0
    t = difference / error
    return Significance(t, 2.0 * float(special.stdtr(df, -abs(t))), 0.0, df)
