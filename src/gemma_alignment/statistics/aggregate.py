"""Aggregates over runs x tasks (Agarwal et al. 2021, arXiv:2108.13264), and what resampling says of them."""

from collections.abc import Callable, Hashable, Sequence

import numpy as np

from gemma_alignment.statistics._numbers import Matrix, Numbers, as_matrix, check_confidence
from gemma_alignment.statistics.intervals import Interval


def iqm(scores: Numbers | Matrix) -> float | None:
    """The mean of the middle half: 25% of the values, rounded down, cut from each end.

    Below four values nothing is cut and it is the plain mean. None without values.
    """
    values = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if values.size == 0:
        return None
    cut = values.size // 4
    return float(values[cut : values.size - cut].mean())


def probability_of_improvement(a: Matrix, b: Matrix) -> float | None:
    """The mean over tasks of P(A > B) = U / (n1 n2), a tie counting one half.

    ``a`` and ``b`` are runs x tasks with the same tasks; ValueError otherwise.
    """
    x, y = as_matrix(a), as_matrix(b)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"the same tasks on both sides: got {x.shape[1]} and {y.shape[1]}")
    if x.size == 0 or y.size == 0:
        return None
    left, right = x[:, None, :], y[None, :, :]
    return float(((left > right) + 0.5 * (left == right)).mean())


def stratified_bootstrap(
    statistic: Callable[..., float | None],
    groups: Sequence[Matrix],
    generator: np.random.Generator,
    draws: int = 2_000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of ``statistic(*groups)``, runs resampled within each group and task.

    ``groups`` are matrices of runs x tasks, one for each argument of ``statistic``; draws for which it is None
    are left out. With three runs a task has ten distinct resampled means: call such an interval descriptive.
    """
    check_confidence(confidence)
    matrices = [as_matrix(group) for group in groups]
    for runs, tasks in (matrix.shape for matrix in matrices):
        if runs < 2 or tasks < 1:
            return Interval(reason=f"{runs} runs x {tasks} tasks: at least two runs are needed")
    samples = [statistic(*(_resampled(matrix, generator) for matrix in matrices)) for _ in range(draws)]
    return _percentile_interval(statistic(*matrices), samples, confidence)


def cluster_bootstrap(
    statistic: Callable[[np.ndarray], float | None],
    clusters: Sequence[Hashable],
    generator: np.random.Generator,
    draws: int = 2_000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of ``statistic(rows)``, rows of one cluster resampled together.

    ``statistic`` takes row numbers, some of them more than once; draws for which it is None are left out.
    """
    check_confidence(confidence)
    rows: dict[Hashable, list[int]] = {}
    for i, cluster in enumerate(clusters):
        rows.setdefault(cluster, []).append(i)
    members = [np.array(found) for found in rows.values()]
    if len(members) < 2:
        return Interval(reason=f"{len(members)} clusters: at least 2 are needed")
    drawn = generator.integers(0, len(members), (draws, len(members)))
    samples = [statistic(np.concatenate([members[i] for i in picks])) for picks in drawn]
    return _percentile_interval(statistic(np.arange(len(clusters))), samples, confidence)


def _percentile_interval(estimate: float | None, samples: list[float | None], confidence: float) -> Interval:
    """Between the percentiles of the samples that are defined."""
    defined = [value for value in samples if value is not None]
    if estimate is None or not defined:
        return Interval(reason="not defined on these rows")
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(np.array(defined), [tail, 100.0 - tail])
    return Interval(estimate, float(low), float(high))


def _resampled(matrix: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return matrix[generator.integers(0, len(matrix), matrix.shape), np.arange(matrix.shape[1])]
