"""Ranking and calibration of a scorer, and correlations: by hand and against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from gemma_alignment.statistics.classifier import auroc, brier, expected_calibration_error, reliability
from gemma_alignment.statistics.correlation import pearson, ranks, spearman
from gemma_alignment.statistics.intervals import wilson


def test_brier_by_hand():
    assert brier([0.9, 0.6, 0.5], [1, 0, 1]) == pytest.approx((0.01 + 0.36 + 0.25) / 3)
    assert brier([0.5] * 4, [0, 1, 1, 1]) == 0.25
    assert brier([], []) is None
    with pytest.raises(ValueError, match="one outcome a prediction"):
        brier([0.5], [])


def test_bins_and_calibration_by_hand():
    p = [0.5, 0.55, 0.62, 0.7, 0.95, 1.0]
    y = [1, 0, 1, 1, 1, 0]
    bins = reliability(p, y, [0.5, 0.6, 0.7, 0.8, 1.0])
    assert [(one.low, one.high, one.n) for one in bins] == [(0.5, 0.6, 2), (0.6, 0.7, 1), (0.7, 0.8, 1), (0.8, 1.0, 2)]
    assert [one.confidence for one in bins] == pytest.approx([0.525, 0.62, 0.7, 0.975])
    assert [one.share for one in bins] == [0.5, 1.0, 1.0, 0.5]
    assert (bins[0].share_low, bins[0].share_high) == wilson(1, 2)
    narrower = reliability(p, y, [0.5, 0.6, 0.7, 0.8, 1.0], confidence=0.5)[0]
    assert (narrower.share_low, narrower.share_high) == wilson(1, 2, 0.5)
    expected = (2 * 0.025 + 0.38 + 0.3 + 2 * 0.475) / 6
    assert expected_calibration_error(bins) == pytest.approx(expected)


def test_a_scorer_that_is_as_sure_as_it_may_be_has_no_error():
    p = [0.75] * 8
    assert expected_calibration_error(reliability(p, [1] * 6 + [0] * 2, [0.5, 1.0])) == 0.0
    assert expected_calibration_error([]) is None
    with pytest.raises(ValueError, match="outside"):
        reliability([0.4], [1], [0.5, 1.0])


def test_auroc_by_hand_and_its_symmetries():
    assert auroc([3.0, 2.0], [1.0, 2.0]) == (1 + 1 + 1 + 0.5) / 4
    assert auroc([1.0], [1.0]) == 0.5
    assert auroc([], [1.0]) is None
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 9, 40), rng.integers(0, 9, 33)
    u = stats.mannwhitneyu(x, y).statistic
    assert auroc(x, y) == pytest.approx(u / (40 * 33), abs=1e-12)
    assert auroc(x, y) + auroc(y, x) == pytest.approx(1.0, abs=1e-12)
    assert auroc(np.exp(x / 3), np.exp(y / 3)) == auroc(x, y)  # only the order counts


@pytest.mark.parametrize(("mine", "theirs"), [(pearson, stats.pearsonr), (spearman, stats.spearmanr)])
def test_correlations_against_scipy(mine, theirs):
    rng = np.random.default_rng(1)
    x = np.round(rng.normal(size=50), 1)
    y = np.round(x + rng.normal(size=50), 1)
    found, known = mine(x, y), theirs(x, y)
    assert found.estimate == pytest.approx(known.statistic, abs=1e-12)
    assert mine(x, -y).estimate == pytest.approx(-known.statistic, abs=1e-12)
    assert found.low < found.estimate < found.high


def test_the_intervals_are_fishers_and_bonetts():
    rng = np.random.default_rng(2)
    x = rng.normal(size=30)
    y = x + rng.normal(size=30)
    known = stats.pearsonr(x, y).confidence_interval(0.9)
    assert (pearson(x, y, 0.9).low, pearson(x, y, 0.9).high) == pytest.approx(tuple(known), abs=1e-12)
    found = spearman(x, y)
    half = 1.959963984540054 * math.sqrt((1 + found.estimate**2 / 2) / 27)
    assert found.high == pytest.approx(math.tanh(math.atanh(found.estimate) + half), abs=1e-12)
    assert np.array_equal(ranks([3.0, 1.0, 3.0, 2.0]), stats.rankdata([3.0, 1.0, 3.0, 2.0]))


def test_correlations_that_are_not_defined_say_why():
    assert "at least 4" in pearson([1, 2, 3], [1, 2, 3]).reason
    assert "no variance" in spearman([1, 1, 1, 1], [1, 2, 3, 4]).reason
    perfect = pearson([1, 2, 3, 4], [2, 4, 6, 8])
    assert (perfect.estimate, perfect.low) == (1.0, None)
    assert "perfect" in perfect.reason
    with pytest.raises(ValueError, match="pairs of values"):
        pearson([1], [1, 2])
