"""Effect sizes against known answers and their identities."""

import dataclasses
import math

import numpy as np
import pytest
from known_answers import HEDGES, VECTORS
from scipy import optimize, special, stats

from gemma_alignment.statistics import _noncentral_t
from gemma_alignment.statistics.effect_size import cohens_d, hedges_correction, paired_effect
from gemma_alignment.statistics.tests import student

EXACT = 1e-8


def triple(effect, name):
    return [getattr(effect, name), getattr(effect, f"{name}_low"), getattr(effect, f"{name}_high")]


@pytest.mark.parametrize("v", VECTORS.values(), ids=VECTORS)
def test_known_answers(v):
    effect = cohens_d(v.x, v.y)
    assert triple(effect, "d") == pytest.approx(v.d, abs=EXACT)
    assert triple(effect, "g") == pytest.approx(v.g, abs=EXACT)
    assert effect.df == v.df
    assert effect.reason is None


@pytest.mark.parametrize("v", VECTORS.values(), ids=VECTORS)
def test_known_paired_answers(v):
    effect = paired_effect(v.x, v.y)
    assert triple(effect, "d_z") == pytest.approx(v.d_z, abs=EXACT)
    assert effect.g_z == pytest.approx(v.g_z, abs=EXACT)
    assert triple(effect, "g_z") == pytest.approx([HEDGES[len(v.x) - 1] * e for e in triple(effect, "d_z")], abs=EXACT)
    assert (effect.df, effect.reason) == (len(v.x) - 1, None)


@pytest.mark.parametrize(("df", "j"), HEDGES.items())
def test_hedges_correction(df, j):
    assert hedges_correction(df) == pytest.approx(j, abs=1e-12)


def test_hedges_correction_has_no_value_at_one_degree_of_freedom():
    assert hedges_correction(1) is None
    effect = paired_effect([1.0, 2.0], [0.5, 1.2])
    # t with one degree of freedom is Cauchy's: d_z = .65 / (.15 sqrt 2)
    assert effect.d_z == pytest.approx(0.65 / 0.15 / math.sqrt(2))
    assert (effect.d_z_low, effect.df) == (pytest.approx(_lower_end(effect.d_z * math.sqrt(2)) / math.sqrt(2)), 1)
    assert effect.d_z < effect.d_z_high
    assert (effect.g_z, effect.g_z_low, effect.g_z_high) == (None, None, None)


def _lower_end(t):
    """The noncentrality under which t with one degree of freedom is the 97.5% point, by scipy."""
    return optimize.brentq(lambda ncp: stats.nct.cdf(t, 1, ncp) - 0.975, -5.0, t, xtol=1e-13)


@pytest.mark.parametrize("effect", [cohens_d, paired_effect])
def test_a_lower_confidence_is_an_interval_inside(effect):
    x, y = [5.0, 6.1, 4.4, 7.0], [3.9, 4.8, 4.1, 4.0]
    wide, narrow = effect(x, y), effect(x, y, 0.8)
    name = "d" if effect is cohens_d else "d_z"
    (point, low, high), (same, closer, nearer) = triple(wide, name), triple(narrow, name)
    assert low < closer < point == same < nearer < high


def test_undefined_effects_keep_what_is_known():
    assert cohens_d([1.0, 1.0, 1.0], [2.0, 2.0]).df == 3
    assert paired_effect([1.0, 2.0, 3.0], [0.0, 1.0, 2.0]).df == 2


@pytest.mark.parametrize("v", VECTORS.values(), ids=VECTORS)
def test_swapping_the_groups_mirrors_the_interval(v):
    effect, mirrored = cohens_d(v.x, v.y), cohens_d(v.y, v.x)
    for name in ("d", "g"):
        point, low, high = triple(mirrored, name)
        assert triple(effect, name) == pytest.approx([-point, -high, -low], abs=1e-9)


@pytest.mark.parametrize("v", VECTORS.values(), ids=VECTORS)
def test_shift_and_positive_scale_change_nothing(v):
    moved = cohens_d([3.7 * x + 11.0 for x in v.x], [3.7 * y + 11.0 for y in v.y])
    assert triple(moved, "d") == pytest.approx(triple(cohens_d(v.x, v.y), "d"), abs=EXACT)


@pytest.mark.parametrize("v", VECTORS.values(), ids=VECTORS)
def test_interval_of_g_is_the_corrected_interval_of_d(v):
    effect = cohens_d(v.x, v.y)
    assert triple(effect, "g") == pytest.approx([HEDGES[v.df] * e for e in triple(effect, "d")])


@pytest.mark.parametrize(("name", "excluded"), [("V1", True), ("V2", False), ("V3", False), ("V4", True)])
def test_interval_leaves_out_zero_exactly_when_students_p_is_below_alpha(name, excluded):
    v = VECTORS[name]
    effect = cohens_d(v.x, v.y)
    assert (effect.d_low > 0 or effect.d_high < 0) is excluded
    assert (student(v.x, v.y).p < 0.05) is excluded


@pytest.mark.parametrize(
    ("a", "b", "word"),
    [
        ([1.0, 1.0, 1.0], [2.0, 2.0, 2.0], "variance"),
        ([0.1 + 0.2, 0.3, 0.3], [0.3, 0.3, 0.3], "variance"),
        ([1.0], [1.0, 2.0, 3.0], "at least 2"),
        ([], [1.0, 2.0], "at least 2"),
        ([1.0, math.nan], [1.0, 2.0], "finite"),
        ([1.0, math.inf], [1.0, 2.0], "finite"),
    ],
)
def test_what_is_undefined_is_none_with_a_reason(a, b, word):
    effect = dataclasses.asdict(cohens_d(a, b))
    assert word in effect.pop("reason")
    effect.pop("df")
    assert set(effect.values()) == {None}


def test_pairs_of_one_constant_difference_are_undefined():
    effect = paired_effect([1.1, 2.1, 3.1], [1.0, 2.0, 3.0])
    assert effect.d_z is None
    assert "no variance" in effect.reason


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="confidence"):
        cohens_d([1.0, 2.0], [1.0, 2.0], confidence=95.0)
    with pytest.raises(ValueError, match="equal lengths"):
        paired_effect([1.0, 2.0], [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="flat"):
        cohens_d(np.ones((2, 2)), np.ones((2, 2)))


def test_a_huge_effect_keeps_a_finite_interval():
    effect = cohens_d([1000.0, 1000.1, 999.9], [0.0, 0.1, -0.1])
    assert effect.d == pytest.approx(10_000.0)
    assert 0 < effect.d_low < effect.d < effect.d_high < math.inf


@pytest.mark.parametrize(("t", "df", "ncp"), [(-50, 1, 20), (-2, 1, 20), (-5, 1, 30)])
def test_where_scipy_gives_up_the_tail_is_integrated(t, df, ncp):
    """A negative t needs Z below -ncp, so the tail is no larger than that of Z."""
    assert math.isnan(special.nctdtr(df, ncp, t))
    assert 0.0 <= _noncentral_t.cdf(t, df, ncp) <= special.ndtr(-ncp)


def test_a_search_doubles_its_steps_and_has_an_end():
    tried = []

    def reached(at):
        tried.append(at)
        return at <= -20.0

    assert _noncentral_t.beyond(reached, 1.0, -2.0) == -29.0
    assert tried == [1.0, -1.0, -5.0, -13.0, -29.0]
    tried.clear()
    with pytest.raises(ValueError, match=r"^nothing found from 1 in 60 doublings of a step of 2$"):
        _noncentral_t.beyond(lambda at: reached(at) and False, 1.0, 2.0)
    assert (len(tried), tried[-1]) == (60, 2.0**60 - 1.0)


@pytest.mark.parametrize(("df", "share"), [(2, 0.3), (4, 0.8), (4, 1.4), (30, 0.9), (200, 1.05)])
def test_quadrature_of_a_huge_t_is_the_chi_square_of_its_scale(df, share):
    """Z is lost beside a noncentrality of 10^7: P(T <= t) = P(sqrt(V / df) >= ncp / t)."""
    expected = stats.chi2.sf(df * share**2, df)
    assert _noncentral_t._by_quadrature(1e7, df, share * 1e7) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(("t", "df", "ncp"), [(3.5, 4, 0.4), (3.5, 4, 6.5), (-2.0, 2, 1.0), (0.0, 7, 0.5)])
def test_quadrature_agrees_with_scipy_where_both_work(t, df, ncp):
    assert _noncentral_t._by_quadrature(t, df, ncp) == pytest.approx(stats.nct.cdf(t, df, ncp), abs=1e-9)
