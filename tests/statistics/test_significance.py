"""Tests of no difference: known answers, floors, invariances."""

import numpy as np
import pytest
from known_answers import FLOORS, VECTORS

from gemma_alignment.statistics import tests as significance
from gemma_alignment.statistics.tests import paired_student, permutation, sign_flip, sign_test, student, welch

EXACT = 1e-8


@pytest.mark.parametrize("v", VECTORS.values(), ids=VECTORS)
def test_known_answers(v):
    s, w, p = student(v.x, v.y), welch(v.x, v.y), paired_student(v.x, v.y)
    assert (s.statistic, s.p) == pytest.approx(v.student, abs=EXACT)
    assert (w.statistic, w.df, w.p) == pytest.approx(v.welch, abs=EXACT)
    assert (p.statistic, p.p) == pytest.approx(v.paired, abs=EXACT)
    assert permutation(v.x, v.y).p == pytest.approx(v.permutation[0], abs=EXACT)
    assert permutation(v.x, v.y).p_one_sided == pytest.approx(v.permutation[1], abs=EXACT)
    assert sign_flip(v.x, v.y).p == pytest.approx(v.sign_flip, abs=EXACT)
    back = welch(v.y, v.x)  # the other group has the larger variance
    assert (-back.statistic, back.df, back.p) == pytest.approx((w.statistic, w.df, w.p), rel=1e-12, abs=1e-12)
    assert (s.floor, w.floor, p.floor) == (0.0, 0.0, 0.0)
    assert (s.df, p.df) == (len(v.x) + len(v.y) - 2, len(v.x) - 1)
    for exact in (permutation(v.x, v.y), sign_flip(v.x, v.y)):
        assert exact.statistic == pytest.approx(np.mean(v.x) - np.mean(v.y), abs=1e-12)


@pytest.mark.parametrize(("n", "floors"), FLOORS.items())
def test_floors_are_stated_and_reached(n, floors):
    x, y = [10.0 + i for i in range(n)], [0.1 * i for i in range(n)]
    for test, floor in zip((permutation, sign_flip), floors, strict=True):
        result = test(x, y)
        assert result.floor == pytest.approx(floor, abs=1e-12)
        assert result.p == pytest.approx(floor, abs=1e-12)


def test_unequal_groups_have_one_extreme_split():
    result = permutation([5.0, 6.0], [1.0, 2.0, 3.0])
    assert result.floor == pytest.approx(0.1)
    assert result.p == pytest.approx(0.1)


@pytest.mark.parametrize("seed", range(20))
def test_three_against_three_moves_in_steps_of_its_design(seed):
    rng = np.random.default_rng(seed)
    x, y = rng.normal(size=3), rng.normal(size=3)
    p, s = permutation(x, y), sign_flip(x, y)
    assert p.p * 20 == pytest.approx(round(p.p * 20), abs=1e-9)
    assert s.p * 4 == pytest.approx(round(s.p * 4), abs=1e-9)
    assert p.p >= p.floor
    assert s.p >= s.floor
    assert permutation(y, x).p == p.p
    assert permutation(x + 1000.0, y + 1000.0).p == p.p


def test_many_seeds_are_drawn_from_the_generator_passed_in():
    rng = np.random.default_rng(5)
    x, y = rng.normal(0.9, 1, 20), rng.normal(0, 1, 20)
    assert "generator" in permutation(x, y).reason
    assert "generator" in sign_flip(x, y).reason
    for test in (permutation, sign_flip):
        first, again, other = (test(x, y, np.random.default_rng(s), 999) for s in (1, 1, 2))
        assert first == again
        assert first.p >= first.floor == 0.001
        assert first.p == pytest.approx(other.p, abs=0.05)
        assert first.p == pytest.approx(student(x, y).p, abs=0.05)


@pytest.mark.parametrize("test", [permutation, sign_flip])
def test_a_drawn_test_of_groups_far_apart_reaches_its_floor(test):
    """Of 20,000 draws none comes near the difference seen; that one is counted with them."""
    x, y = np.arange(20.0) / 20 + 50.0, np.arange(20.0) / 20
    found, back = test(x, y, np.random.default_rng(0)), test(y, x, np.random.default_rng(0))
    assert found.p == found.floor == back.p == 1 / 20_001
    assert (found.statistic, back.statistic) == (pytest.approx(50.0), pytest.approx(-50.0))
    if test is permutation:
        assert (found.p_one_sided, back.p_one_sided) == (1 / 20_001, 1.0)


def test_fifteen_pairs_are_still_enumerated():
    found = sign_flip([1.0] * 15, [0.0] * 14 + [0.5])
    assert (found.p, found.floor) == (2 / 2**15, 2 / 2**15)


@pytest.mark.parametrize("test", [permutation, sign_flip])
def test_a_drawn_test_comes_near_the_enumerated_one(test, monkeypatch):
    x, y = [2.0, 3.5, 1.0, 4.0, 2.5, 3.0], [1.5, 2.0, 0.5, 3.5, 3.0, 1.0]
    exact = test(x, y)
    monkeypatch.setattr(significance, "MAX_EXACT_SPLITS", 10)
    drawn = test(x, y, np.random.default_rng(1), 4_000)
    assert (exact.floor, drawn.floor) == (pytest.approx(2 / (924 if test is permutation else 64)), 1 / 4_001)
    assert drawn.p == pytest.approx(exact.p, abs=0.03)
    assert drawn.statistic == pytest.approx(exact.statistic, abs=1e-12)
    if test is permutation:
        assert drawn.p_one_sided == pytest.approx(exact.p_one_sided, abs=0.03)


@pytest.mark.parametrize("test", [permutation, sign_flip])
@pytest.mark.parametrize(("x", "y"), [([1, 2, 7], [3, 4, 5]), ([1, 2, 3, 0], [0, 0, 0, 4]), ([3, 6, 9], [2, 4, 8])])
def test_ties_in_tenths_are_those_of_whole_numbers(test, x, y):
    """0.1 + 0.2 is not 0.3: without a tolerance some of the ties would be missed."""
    whole, tenths = test(x, y), test([v / 10 for v in x], [v / 10 for v in y])
    assert (tenths.p, tenths.p_one_sided) == (whole.p, whole.p_one_sided)
    assert test([v * 7e5 / 3 for v in x], [v * 7e5 / 3 for v in y]).p == whole.p


def test_without_variance_the_degrees_of_freedom_stay():
    for test, df in ((student, 3), (welch, 1 / (0.25 / 2 + 0.25 / 1))):
        assert test([1.0, 1.0, 1.0], [2.0, 2.0]).df == pytest.approx(df)
    assert paired_student([1.0, 2.0, 3.0], [0.0, 1.0, 2.0]).df == 2


def test_sign_test():
    assert sign_test(8, 2).p == pytest.approx(0.109375)  # 2 (1 + 10 + 45) / 1024
    assert sign_test(8, 2).floor == pytest.approx(2 / 1024)
    assert (sign_test(8, 2).statistic, sign_test(1, 0).floor, sign_test(0, 1).p) == (8.0, 1.0, 1.0)
    assert sign_test(5, 5).p == 1.0
    assert sign_test(0, 0).p is None
    assert sign_test(0, 0).reason
    with pytest.raises(ValueError, match="negative"):
        sign_test(-1, 2)


def test_no_p_without_variance_or_values():
    for test in (student, welch, paired_student):
        assert test([1.0, 1.0], [2.0, 2.0]).p is None
        assert test([1.0, 1.0], [2.0, 2.0]).reason
    for test in (student, welch, paired_student, permutation, sign_flip):
        assert test([1.0], [2.0]).p is None
        assert "at least 2" in test([1.0], [2.0]).reason
    for test in (paired_student, sign_flip):
        with pytest.raises(ValueError, match="equal lengths"):
            test([1.0, 2.0], [1.0, 2.0, 3.0])


@pytest.mark.slow
def test_two_samples_of_one_arm_are_rarely_told_apart():
    rng = np.random.default_rng(3)
    below = {"student": 0, "permutation": 0}
    for _ in range(1500):
        x, y = rng.normal(size=3), rng.normal(size=3)
        below["student"] += student(x, y).p < 0.05
        below["permutation"] += permutation(x, y).p <= 0.1
    assert 0.035 <= below["student"] / 1500 <= 0.065
    assert 0.08 <= below["permutation"] / 1500 <= 0.12
