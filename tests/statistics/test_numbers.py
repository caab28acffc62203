"""What every statistic asks of its input."""

import numpy as np
import pytest

from gemma_alignment.statistics._numbers import LARGEST, as_matrix, as_values, rounding_of, unusable


def test_whole_numbers_become_floats():
    for found in (as_values([1, 2]), as_values(np.array([1, 2], dtype=np.int8)), as_matrix([[1, 2]])):
        assert found.dtype == np.float64
    with pytest.raises(ValueError, match=r"^expected rows of numbers of one length, got the shape \(2,\)$"):
        as_matrix([1, 2])


def test_rounding_is_a_share_of_the_largest_size():
    assert rounding_of(np.array([-2e12, 1.0]), np.array([3.0])) == pytest.approx(2.0)
    assert rounding_of(np.array([3.0]), np.array([1.0, -2e12])) == pytest.approx(2.0)
    assert rounding_of() == rounding_of(np.array([])) == 0.0


def test_what_cannot_be_used_is_the_first_group_that_cannot():
    one, two = np.array([1.0]), np.array([1.0, 2.0])
    assert unusable(two, two) is None
    assert unusable(two, one) == "n = 1: at least 2 values a group are needed"
    assert unusable(np.array([]), one, least=1) == "n = 0: at least 1 values a group are needed"
    assert unusable(one, np.array([]), least=0) is None
    assert unusable(np.array([LARGEST, -LARGEST])) is None
    assert "beyond 1e+150" in unusable(np.array([0.0, -1.01 * LARGEST]))
    assert unusable(two, np.array([0.0, np.nan])) == "a value is not a finite number"
