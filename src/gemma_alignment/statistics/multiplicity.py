"""Adjusted p values of a family of tests, in the order they came in."""

from collections.abc import Callable, Sequence


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment: p_(i) -> max_{j<=i} min(1, (m-j+1) p_(j)).

    None (a test that could not be made) stays None and is no member of the family.
    ValueError for a p outside [0, 1]. Source: Holm 1979.
    """
    return _adjust(p_values, _step_down)


def benjamini_hochberg(p_values: Sequence[float | None]) -> list[float | None]:
    """The false-discovery-rate adjustment: p_(i) -> min_{j>=i} min(1, m p_(j) / j).

    None stays None, as in ``holm``. Source: Benjamini & Hochberg 1995.
    """
    return _adjust(p_values, _step_up)


def _adjust(p_values: Sequence[float | None], step: Callable[[list[float]], list[float]]) -> list[float | None]:
    members = [(p, i) for i, p in enumerate(p_values) if p is not None]
    for p, _ in members:
        if not 0.0 <= p <= 1.0:
            raise ValueError(f"a p value lies between 0 and 1, got {p}")
    members.sort()
    adjusted: list[float | None] = [None] * len(p_values)
    for (_, i), value in zip(members, step([p for p, _ in members]), strict=True):
        adjusted[i] = value
    return adjusted


def _step_down(ordered: list[float]) -> list[float]:
    result, largest = [], 0.0
    for rank, p in enumerate(ordered):
        largest = max(largest, min(1.0, (len(ordered) - rank) * p))
        result.append(largest)
    return result


def _step_up(ordered: list[float]) -> list[float]:
    result, least = [], 1.0
    for rank in range(len(ordered), 0, -1):
        least = min(least, len(ordered) * ordered[rank - 1] / rank)
        result.append(max(ordered[rank - 1], least))  # m p / m may round below p
    return result[::-1]
