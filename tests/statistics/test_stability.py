"""Spread over seeds, and the worst drawdown of a curve."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_alignment.statistics.stability import pooled_sd, spread, worst_drawdown

SERIES = st.lists(st.floats(-100, 100), min_size=1, max_size=30)


def test_the_sd_of_three_values_and_its_chi_square_interval():
    found = spread([1.0, 2.0, 3.0])
    assert (found.sd, found.least, found.largest, found.df) == (1.0, 1.0, 3.0, 2.0)
    # chi-square with 2 degrees of freedom is exponential: its quantile is -2 ln(1 - p)
    assert found.sd_low == pytest.approx(math.sqrt(2 / (-2 * math.log(0.025))))
    assert found.sd_high == pytest.approx(math.sqrt(2 / (-2 * math.log(0.975))))
    assert (round(found.sd_low, 4), round(found.sd_high, 4)) == (0.5207, 6.2847)


def test_a_lower_confidence_is_a_narrower_interval():
    wide, narrow = spread([1.0, 2.0, 3.0]), spread([1.0, 2.0, 3.0], 0.8)
    assert wide.sd_low < narrow.sd_low < narrow.sd < narrow.sd_high < wide.sd_high


def test_the_interval_covers_the_true_sd_as_often_as_it_says():
    draws = np.random.default_rng(5).normal(7.0, 2.0, (2_000, 3))
    found = [spread(row) for row in draws]
    assert np.mean([one.sd_low <= 2.0 <= one.sd_high for one in found]) == pytest.approx(0.95, abs=0.015)


@pytest.mark.parametrize(
    ("values", "sd", "ends", "reason"),
    [
        ([], None, (None, None), "n = 0"),
        ([4.0], None, (4.0, 4.0), "n = 1"),
        ([4.0, 4.0, 4.0], 0.0, (4.0, 4.0), "no variance"),
        ([4.0, math.nan], None, (None, None), "not a finite number"),
    ],
)
def test_where_there_is_no_interval_the_reason_is_said(values, sd, ends, reason):
    found = spread(values)
    assert (found.sd, found.sd_low, found.sd_high) == (sd, None, None)
    assert (found.least, found.largest) == ends
    assert reason in found.reason


def test_seeds_of_one_value_have_no_spread_and_keep_their_degrees_of_freedom():
    assert (spread([4.0, 4.0, 4.0]).df, spread([0.0, 0.0]).df) == (2.0, 1.0)
    assert spread([0.0, 0.0]).reason == "no variance among the values"


@pytest.mark.parametrize(
    ("series", "drawdown"),
    [
        ([0.0, 1.0, 0.25, 2.0, 1.5, 1.75], 0.75),  # from 1 to 0.25; from 2 only to 1.5
        ([0.0, 3.0, 1.0, 2.0, 0.5], 2.5),  # a partial recovery does not start anew
        ([1.0, 2.0, 3.0], 0.0),
        ([5.0], 0.0),
        ([3.0, 2.0, 1.0], 2.0),
    ],
)
def test_the_worst_drawdown_is_the_deepest_fall_below_the_best_so_far(series, drawdown):
    assert worst_drawdown(series) == drawdown


@given(SERIES, st.floats(-10, 10))
def test_a_drawdown_is_its_definition_and_moves_with_no_shift(series, shift):
    literal = max(max(series[: t + 1]) - series[t] for t in range(len(series)))
    assert worst_drawdown(series) == literal >= 0.0
    assert worst_drawdown([v + shift for v in series]) == pytest.approx(literal, abs=1e-9)


def test_nothing_has_no_drawdown_and_nan_is_refused():
    assert worst_drawdown([]) is None
    with pytest.raises(ValueError, match="finite"):
        worst_drawdown([1.0, math.nan])


def test_the_pooled_sd_weighs_groups_by_their_degrees_of_freedom():
    assert pooled_sd([[0.0, 2.0], [5.0, 5.0, 5.0]]) == pytest.approx(math.sqrt((1 * 2.0 + 2 * 0.0) / 3))
    assert pooled_sd([[1.0, 2.0, 3.0]]) == 1.0
    assert pooled_sd([[0.0, 2.0], [9.0]]) == pytest.approx(math.sqrt(2.0))
    assert pooled_sd([[1.0], []]) is None
