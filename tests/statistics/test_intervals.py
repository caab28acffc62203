"""Intervals against known answers, identities and simulated coverage."""

import math

import numpy as np
import pytest
from known_answers import VECTORS, WILSON
from scipy import stats

from gemma_alignment.statistics.intervals import (
    bootstrap_mean,
    paired_difference,
    student_difference,
    t_interval,
    welch_difference,
    wilson,
)

EXACT = 1e-8


@pytest.mark.parametrize(("counts", "interval"), WILSON.items())
def test_wilson_known_answers(counts, interval):
    assert wilson(*counts) == pytest.approx(interval, abs=EXACT)


@pytest.mark.parametrize("counts", WILSON)
def test_wilson_of_the_failures_is_the_mirror(counts):
    s, n = counts
    low, high = wilson(n - s, n)
    assert wilson(s, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


def test_wilson_at_the_edges():
    assert wilson(0, 0) == (None, None)
    assert wilson(0, 7)[0] == 0.0
    assert wilson(7, 7)[1] == 1.0
    with pytest.raises(ValueError, match="between 0 and n"):
        wilson(11, 10)
    with pytest.raises(ValueError, match="confidence"):
        wilson(1, 10, confidence=1.0)


@pytest.mark.parametrize("v", VECTORS.values(), ids=VECTORS)
def test_welch_and_paired_known_answers(v):
    welch, paired = welch_difference(v.x, v.y), paired_difference(v.x, v.y)
    assert (welch.low, welch.high) == pytest.approx(v.welch_interval, abs=EXACT)
    assert welch.df == pytest.approx(v.welch[1], abs=EXACT)
    assert (paired.low, paired.high) == pytest.approx(v.paired_interval, abs=EXACT)
    assert welch.estimate == pytest.approx(paired.estimate, abs=1e-12)


def test_student_difference_against_scipy():
    x, y = [5.0, 6.1, 4.4, 7.0], [3.9, 4.8, 4.1]
    expected = stats.ttest_ind(x, y).confidence_interval(0.9)
    mine = student_difference(x, y, confidence=0.9)
    assert (mine.low, mine.high) == pytest.approx((expected.low, expected.high), abs=1e-10)
    assert (mine.estimate, mine.df) == (pytest.approx(5.625 - 12.8 / 3), 5)
    assert student_difference([4.0, 4.0], [1.0, 1.0, 1.0]).df == 3
    for difference, options in ((welch_difference, {"equal_var": False}), (student_difference, {})):
        expected = stats.ttest_ind(x, y, **options).confidence_interval(0.95)
        mine = difference(x, y)
        assert (mine.low, mine.high) == pytest.approx((expected.low, expected.high), abs=1e-10)
        assert mine.estimate == pytest.approx((mine.low + mine.high) / 2)
        assert difference(x, y, 0.8).high < mine.high


def test_t_interval_by_hand():
    mine = t_interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)  # t(2) at .975, sd 1
    assert (mine.estimate, mine.low, mine.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half), abs=1e-10)
    assert mine.df == 2


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0, 2.0], [1.0, math.nan], []])
def test_no_interval_without_variance(values):
    mine = t_interval(values)
    assert mine.low is None
    assert mine.high is None
    assert mine.reason


def test_one_seed_keeps_its_value():
    assert t_interval([1.5]).estimate == 1.5
    assert welch_difference([2.0], [0.5]).estimate == 1.5
    assert welch_difference([2.0], [0.5]).low is None


def test_differences_without_variance_have_no_interval():
    for difference in (welch_difference, student_difference, paired_difference):
        result = difference([2.0, 2.0], [1.0, 1.0])
        assert result.estimate == 1.0
        assert result.low is None
        assert "variance" in result.reason
    assert paired_difference([1.1, 2.1, 3.1], [1.0, 2.0, 3.0]).low is None
    hidden = paired_difference([1e6, 2e6 + 1e-7, 3e6], [1e6, 2e6, 3e6])
    assert (hidden.estimate, hidden.low, hidden.df) == (pytest.approx(1e-7 / 3, rel=1e-2), None, 2)
    # Rounding of 2e12 is 2, the sd of 0 and 3 is 2.1: just enough to be seen.
    assert paired_difference([0.0, 2e12], [0.0, 2e12 - 3.0]).low is not None
    assert (t_interval([0.0, 0.0]).reason, t_interval([5.0, 5.0, 5.0]).df) == ("no variance among the values", 2)


def test_exact_bootstrap_of_three_values():
    rng = np.random.default_rng(0)
    before = rng.bit_generator.state
    result = bootstrap_mean([0.61, 0.58, 0.66], rng)
    assert (result.low, result.high) == pytest.approx((0.5865, 0.6491666666666667), abs=EXACT)
    assert rng.bit_generator.state == before, "an enumerated bootstrap draws nothing"


def test_a_bootstrap_drawn_in_parts_is_the_one_drawn_at_once():
    """2,000 values are resampled a thousand times at a time; the generator gives the same numbers either way."""
    values = np.random.default_rng(1).normal(size=2_000)
    found = bootstrap_mean(values, np.random.default_rng(7), 2_500, confidence=0.8)
    means = values[np.random.default_rng(7).integers(0, 2_000, (2_500, 2_000))].mean(axis=1)
    assert (found.low, found.high) == pytest.approx(np.percentile(means, [10.0, 90.0]), abs=1e-12)


def test_drawn_bootstrap_depends_on_its_generator_alone():
    values = np.random.default_rng(1).normal(size=40)
    first, again, other = (bootstrap_mean(values, np.random.default_rng(s), 500) for s in (3, 3, 4))
    assert first == again
    assert first != other
    assert first.low < values.mean() < first.high
    assert first.estimate == values.mean()
    assert bootstrap_mean(values, np.random.default_rng(3)) == bootstrap_mean(values, np.random.default_rng(3), 10_000)
