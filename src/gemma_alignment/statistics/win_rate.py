"""Win rates with ties, for one set of prompts and over seeds x prompts.

Sources: Wilson 1927; Cameron, Gelbach & Miller 2011; Miller 2024 (arXiv:2411.00640).
"""

import math
from dataclasses import dataclass

import numpy as np

from gemma_alignment.statistics._numbers import Matrix, as_matrix, rounding_of
from gemma_alignment.statistics.intervals import (
    Interval,
    bootstrap_mean,
    normal_quantile,
    t_interval,
    t_quantile,
    wilson,
)
from gemma_alignment.statistics.tests import sign_test


@dataclass(frozen=True)
class WinRate:
    """One rate over n comparisons, a tie counting one half."""

    rate: float | None
    low: float | None
    high: float | None
    wins: int
    ties: int
    losses: int
    decisive_rate: float | None = None
    """wins / (wins + losses)."""
    decisive_low: float | None = None
    decisive_high: float | None = None
    sign_test_p: float | None = None
    sign_test_floor: float | None = None
    sem: float | None = None
    """Standard error of the rate, with ddof 1."""
    half_count_low: float | None = None
    """Wilson on half-counted ties: valid but too wide; the one to read when all are ties."""
    half_count_high: float | None = None
    reason: str | None = None
    """Why a number is None, or an interval says little."""


@dataclass(frozen=True)
class CrossedRate:
    """One rate over seeds x prompts, with an interval for each kind of repetition."""

    rate: float | None = None
    seeds: int = 0
    prompts: int = 0
    per_seed: tuple[float, ...] = ()
    prompt_low: float | None = None
    """Clustered by prompt: new prompts, these trained models."""
    prompt_high: float | None = None
    seed_low: float | None = None
    """Student's t over the rates of the seeds: new seeds, these prompts."""
    seed_high: float | None = None
    seed_df: float | None = None
    two_way_low: float | None = None
    """New prompts and new seeds together, t on the smaller df."""
    two_way_high: float | None = None
    joint_low: float | None = None
    """Both again, from the sum of the two errors: with many seeds neither one-way interval is wide enough."""
    joint_high: float | None = None
    joint_df: float | None = None
    se_iid: float | None = None
    se_prompt: float | None = None
    se_seed: float | None = None
    se_two_way: float | None = None
    reason: str | None = None
    """Why a number is None."""


def tie_aware_interval(
    wins: int, ties: int, losses: int, confidence: float = 0.95
) -> tuple[float, float] | tuple[None, None]:
    """The score interval of p = (W + T/2)/n with the variance p(1-p) - tau/4, tau = T/n plugged in.

    The roots of (1 + z^2/n) m^2 - (2p + z^2/n) m + p^2 + z^2 tau/(4n) = 0, clamped to [0, 1];
    Wilson's interval when there are no ties.
    """
    if min(wins, ties, losses) < 0:
        raise ValueError(f"counts cannot be negative, got {wins}/{ties}/{losses}")
    n = wins + ties + losses
    z2 = normal_quantile(confidence) ** 2
    if n == 0:
        return None, None
    if ties == n:
        return 0.5, 0.5
    p, tau = (wins + ties / 2.0) / n, ties / n
    a, b, c = 1.0 + z2 / n, 2.0 * p + z2 / n, p * p + z2 * tau / (4.0 * n)
    root = math.sqrt(max(0.0, b * b - 4.0 * a * c))
    return max(0.0, (b - root) / (2.0 * a)), min(1.0, (b + root) / (2.0 * a))


def summarize(wins: int, ties: int, losses: int, confidence: float = 0.95) -> WinRate:
    """Everything to print of one set of comparisons: rate, intervals, decisive rate, sign test.

    ValueError for a negative count. With no comparison every number is None; with ties
    only, the decisive rate and the sign test are.
    """
    low, high = tie_aware_interval(wins, ties, losses, confidence)
    n = wins + ties + losses
    if n == 0:
        return WinRate(None, None, None, 0, 0, 0, reason="no comparison")
    rate = (wins + ties / 2.0) / n
    half_low, half_high = wilson(wins + ties / 2.0, n, confidence)
    variance = max(0.0, rate * (1.0 - rate) - ties / n / 4.0)
    sem = math.sqrt(variance / (n - 1)) if n > 1 else None
    decided = wins + losses
    decisive_low, decisive_high = wilson(wins, decided, confidence)
    test = sign_test(wins, losses)
    reason = None if n > 1 else "one comparison has no standard error"
    if not decided:
        reason = "every comparison is a tie: read the Wilson interval on half counts"
    return WinRate(
        rate,
        low,
        high,
        wins,
        ties,
        losses,
        wins / decided if decided else None,
        decisive_low,
        decisive_high,
        test.p,
        test.floor,
        sem,
        half_low,
        half_high,
        reason,
    )


def crossed(scores: Matrix, confidence: float = 0.95) -> CrossedRate:
    """The mean of seeds x prompts scores in {0, 1/2, 1} with prompt- and seed-level intervals.

    With e = s - mean, N = K P: V_prompt = P/(P-1) sum_p (sum_k e)^2 / N^2, V_seed likewise over
    k, V_iid = N/(N-1) sum e^2 / N^2, two-way V_prompt + V_seed - V_iid but not below the larger
    of the two. Intervals are Student's, clamped to [0, 1]. ValueError for scores outside [0, 1].
    """
    matrix = as_matrix(scores)
    if matrix.size and (np.nanmin(matrix) < 0.0 or np.nanmax(matrix) > 1.0):
        raise ValueError("a win rate is made of scores between 0 and 1")
    return crossed_mean(matrix, confidence, bounds=(0.0, 1.0))


def crossed_mean(
    values: Matrix, confidence: float = 0.95, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> CrossedRate:
    """As ``crossed`` for values of any scale, such as per-prompt differences of two methods."""
    matrix = as_matrix(values)
    seeds, prompts = matrix.shape
    if matrix.size == 0:
        return CrossedRate(seeds=seeds, prompts=prompts, reason="no comparison")
    if not np.all(np.isfinite(matrix)):
        return CrossedRate(seeds=seeds, prompts=prompts, reason="a value is not a finite number")
    mean = float(matrix.mean())
    per_seed = tuple(float(r) for r in matrix.mean(axis=1))
    errors = standard_errors(matrix)
    by_seed = t_interval(per_seed, confidence)
    prompt_low, prompt_high = _around(mean, errors["prompt"], prompts - 1, confidence, bounds)
    two_low, two_high = _around(mean, errors["two_way"], min(seeds, prompts) - 1, confidence, bounds)
    joint, joint_df = _joint_error(errors, seeds, prompts)
    joint_low, joint_high = _around(mean, joint, joint_df or 0.0, confidence, bounds)
    seed_low = None if by_seed.low is None else max(bounds[0], by_seed.low)
    seed_high = None if by_seed.high is None else min(bounds[1], by_seed.high)
    return CrossedRate(
        mean,
        seeds,
        prompts,
        per_seed,
        prompt_low,
        prompt_high,
        seed_low,
        seed_high,
        by_seed.df,
        two_low,
        two_high,
        joint_low,
        joint_high,
        joint_df,
        errors["iid"],
        errors["prompt"],
        errors["seed"],
        errors["two_way"],
        _why_missing(errors["prompt"], by_seed),
    )


def standard_errors(matrix: np.ndarray) -> dict[str, float | None]:
    """Standard errors of the mean of a seeds x prompts matrix: iid, prompt, seed, two_way.

    One is None where its number of clusters is below two; two_way needs both.
    """
    seeds, prompts = matrix.shape
    n = matrix.size
    e = matrix - matrix.mean()
    noise = rounding_of(matrix) * max(seeds, prompts)
    iid = _cluster_variance(e.ravel(), n, noise)
    prompt = _cluster_variance(e.sum(axis=0), n, noise)
    seed = _cluster_variance(e.sum(axis=1), n, noise)
    two_way = None
    if iid is not None and prompt is not None and seed is not None:
        two_way = max(prompt + seed - iid, prompt, seed)
    variances = {"iid": iid, "prompt": prompt, "seed": seed, "two_way": two_way}
    return {name: None if v is None else math.sqrt(v) for name, v in variances.items()}


def _joint_error(
    errors: dict[str, float | None], seeds: int, prompts: int
) -> tuple[float, float] | tuple[None, None]:
    """sqrt(V_seed + V_prompt) and its degrees of freedom, (sum V)^2 / (V_seed^2 / (K-1) + V_prompt^2 / (P-1)).

    What both count, V_iid, is not taken off: the interval errs on the wide side. None without an error of either
    kind. Source: Satterthwaite 1946.
    """
    seed, prompt = errors["seed"], errors["prompt"]
    if seed is None or prompt is None or seed + prompt == 0.0:
        return None, None
    joint = math.hypot(seed, prompt)
    return joint, 1.0 / ((seed / joint) ** 4 / (seeds - 1) + (prompt / joint) ** 4 / (prompts - 1))


def _cluster_variance(sums: np.ndarray, n: int, noise: float) -> float | None:
    """C/(C-1) sum of the squared cluster sums over n^2; sums that are only rounding count as 0."""
    clusters = sums.size
    if clusters < 2:
        return None
    return float(clusters / (clusters - 1) * (np.where(np.abs(sums) <= noise, 0.0, sums) ** 2).sum() / n**2)


def prompt_bootstrap(
    scores: Matrix, generator: np.random.Generator, draws: int = 10_000, confidence: float = 0.95
) -> Interval:
    """Percentile interval of the mean, prompts resampled with all their seeds together.

    It answers "new prompts, these trained models". Small cases are enumerated.
    """
    return bootstrap_mean(as_matrix(scores).mean(axis=0), generator, draws, confidence)


def _around(
    mean: float, error: float | None, df: float | int, confidence: float, bounds: tuple[float, float]
) -> tuple[float, float] | tuple[None, None]:
    if not error or df < 1:  # an error of 0 is no certainty: there was nothing to see it by
        return None, None
    half = t_quantile(confidence, float(df)) * error
    return max(bounds[0], mean - half), min(bounds[1], mean + half)


def _why_missing(prompt_error: float | None, by_seed: Interval) -> str | None:
    reasons = []
    if prompt_error is None:
        reasons.append("one prompt: no interval over prompts")
    elif prompt_error == 0.0:
        reasons.append("no variance between prompts: no interval over prompts")
    if by_seed.low is None:
        reasons.append(f"over seeds: {by_seed.reason}")
    return "; ".join(reasons) or None
