"""Aggregates over runs x tasks, after Agarwal et al. 2021 (arXiv:2108.13264)."""

from collections.abc import Callable

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
    statistic: Callable[[np.ndarray], float | None],
    scores: Matrix,
    generator: np.random.Generator,
    draws: int = 2_000,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of ``statistic``, runs resampled within each task.

    With three runs a task has ten distinct resampled means: call such an interval descriptive.
    """
    check_confidence(confidence)
    matrix = as_matrix(scores)
    runs, tasks = matrix.shape
    if runs < 2 or tasks < 1:
        return Interval(reason=f"{runs} runs x {tasks} tasks: at least two runs are needed")
    columns = np.arange(tasks)
    samples = [statistic(matrix[generator.integers(0, runs, (runs, tasks)), columns]) for _ in range(draws)]
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(np.array(samples, dtype=np.float64), [tail, 100.0 - tail])
    return Interval(statistic(matrix), float(low), float(high))
