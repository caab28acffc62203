"""What every statistic asks of its input."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Numbers = Sequence[float | int] | NDArray[np.floating] | NDArray[np.integer]
"""A flat run of numbers: a list, a tuple or an array."""

Matrix = Sequence[Sequence[float | int]] | NDArray[np.floating] | NDArray[np.integer]
"""Rows of numbers of one length."""

RELATIVE_ZERO = 1e-12
"""Below this share of the largest value, a difference is rounding and counts as none."""


LARGEST = 1e150
"""Squares of larger values leave the range of a float64."""


def as_values(values: Numbers) -> NDArray[np.float64]:
    """``values`` as a flat float64 array; ValueError when it is not one-dimensional."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise ValueError(f"expected a flat list of numbers, got the shape {array.shape}")
    return array


def as_matrix(values: Matrix) -> NDArray[np.float64]:
    """``values`` as a float64 matrix; ValueError when it is not two-dimensional."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2:
        raise ValueError(f"expected rows of numbers of one length, got the shape {array.shape}")
    return array


def check_confidence(confidence: float) -> None:
    """ValueError unless ``confidence`` lies strictly between 0 and 1."""
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is a share between 0 and 1, got {confidence}")


def rounding_of(*groups: NDArray[np.float64]) -> float:
    """The size below which a spread among these values is only rounding."""
    largest = max((float(np.max(np.abs(g))) for g in groups if g.size), default=0.0)
    return RELATIVE_ZERO * largest


def unusable(*groups: NDArray[np.float64], least: int = 2) -> str | None:
    """Why these groups carry no comparison, or None when they do."""
    for group in groups:
        if group.size < least:
            return f"n = {group.size}: at least {least} values a group are needed"
        if not np.all(np.isfinite(group)):
            return "a value is not a finite number"
        if group.size and np.max(np.abs(group)) > LARGEST:
            return f"a value is beyond {LARGEST:g}: its square would not be a number"
    return None
