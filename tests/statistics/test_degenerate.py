"""Whatever values come in, what goes out is a finite number, or None with a reason."""

import dataclasses
import math
import re
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_alignment.statistics import power, tests
from gemma_alignment.statistics.aggregate import (
    cluster_bootstrap,
    iqm,
    probability_of_improvement,
    stratified_bootstrap,
)
from gemma_alignment.statistics.agreement import kappa, mcnemar
from gemma_alignment.statistics.classifier import brier, reliability
from gemma_alignment.statistics.correlation import pearson, spearman
from gemma_alignment.statistics.effect_size import cohens_d, paired_effect
from gemma_alignment.statistics.intervals import (
    bootstrap_mean,
    normal_quantile,
    paired_difference,
    student_difference,
    t_interval,
    t_quantile,
    welch_difference,
    wilson,
)
from gemma_alignment.statistics.length_control import length_controlled
from gemma_alignment.statistics.multiplicity import benjamini_hochberg, holm
from gemma_alignment.statistics.stability import spread, worst_drawdown
from gemma_alignment.statistics.win_rate import crossed, crossed_mean, summarize

ODD = st.sampled_from([0.0, 1.0, -1.0, 0.1 + 0.2, 0.3, 1e-12, 1e-160, 1e9, -1e9, 1e150, math.nan, math.inf])
VALUES = st.lists(st.one_of(ODD, st.floats(-1e6, 1e6)), max_size=5)
RESULTS = st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=1, max_size=4)
RARELY = settings(deadline=None, max_examples=60)


def check(result):
    numbers = dataclasses.asdict(result)
    for name, value in numbers.items():
        if isinstance(value, float):
            assert math.isfinite(value), f"{name} of {result}"
    if any(value is None for name, value in numbers.items() if name not in ("reason", "df", "p_one_sided")):
        assert numbers["reason"], f"no reason in {result}"


@RARELY
@given(VALUES, VALUES)
def test_two_groups(a, b):
    for function in (cohens_d, tests.student, tests.welch, tests.permutation, welch_difference, student_difference):
        check(function(a, b))
    for function in (t_interval, spread):
        check(function(a))
    for function in (paired_effect, tests.paired_student, tests.sign_flip, paired_difference, pearson, spearman):
        check(function(a[: len(b)], b[: len(a)]))
    check(bootstrap_mean(a, np.random.default_rng(0), 50))


@RARELY
@given(st.lists(RESULTS, min_size=1, max_size=4), st.integers(1, 4))
def test_seeds_by_prompts(rows, prompts):
    scores = np.array([[row[i % len(row)] for i in range(prompts)] for row in rows])
    for function in (crossed, crossed_mean):
        check(function(scores))
    found = stratified_bootstrap(iqm, [scores], np.random.default_rng(0), 20)
    check(found)
    assert probability_of_improvement(scores, scores) == 0.5


@RARELY
@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 30))
def test_counts(wins, ties, losses):
    check(summarize(wins, ties, losses))
    check(tests.sign_test(wins, losses))
    check(mcnemar(wins, losses))
    check(kappa("a" * wins + "b" * ties, "a" * ties + "b" * wins))


@RARELY
@given(RESULTS, st.lists(st.sampled_from([-1e9, -3.0, 0.0, 0.0, 2.0, 1e9]), min_size=4, max_size=4))
def test_rates_at_equal_length(outcomes, gaps):
    n = len(outcomes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(length_controlled(outcomes, gaps[:n], list(range(n))))


FEW = "n = 1: at least 2 values a group are needed"
NOT_FINITE = "a value is not a finite number"
TOO_LARGE = "a value is beyond 1e+150: its square would not be a number"
GOOD = [1.0, 2.0, 4.0, 3.0]
UNPAIRED = (cohens_d, tests.student, tests.welch, tests.permutation, welch_difference, student_difference)
PAIRED = (paired_effect, tests.paired_student, tests.sign_flip, paired_difference)


@pytest.mark.parametrize("bad", [[1.0, math.nan, 2.0, 3.0], [1.0, 2.0, 3.0, -math.inf]], ids=str)
@pytest.mark.parametrize("function", [*UNPAIRED, *PAIRED, pearson, spearman])
def test_a_value_that_is_no_number_is_seen_on_both_sides(function, bad):
    for found in (function(bad, GOOD), function(GOOD, bad)):
        assert found == type(found)(reason=NOT_FINITE)


@pytest.mark.parametrize("function", [*UNPAIRED, *PAIRED])
def test_values_too_large_or_too_few_are_seen_on_both_sides(function):
    large = [1.0, 2.0, 3.0, -1.0001e150]
    for found in (function(large, GOOD), function(GOOD, large)):
        assert (found.reason, getattr(found, "p", None), getattr(found, "low", None)) == (TOO_LARGE, None, None)
    one = [function] * (function in UNPAIRED)  # pairs are counted first
    for found in [function([1.0], [5.0])] + [f([1.0], GOOD) for f in one] + [f(GOOD, [1.0]) for f in one]:
        assert found.reason == FEW
    if function in PAIRED:  # however small the difference
        for found in (function([1.01e150, 2.0], [1e150, 1.0]), function([1e150, 2.0], [1.01e150, 1.0])):
            assert found.reason == TOO_LARGE
    check(function([-1e150, 1.0], [2.0, 5.0]))  # the largest that is taken
    assert function([-1e150, 1.0], [2.0, 5.0]).reason != TOO_LARGE


OF_SPREAD = [f for f in (*UNPAIRED, *PAIRED) if f not in (tests.permutation, tests.sign_flip)]


@pytest.mark.parametrize("function", OF_SPREAD)
def test_rounding_is_that_of_the_larger_side(function):
    """Twelve digits below the largest value there is nothing to see, whichever side that value is on."""
    small, other, large = [1.0, 1.1, 1.3], [2.0, 2.1, 2.0], [1e12, 1e12, 1e12]
    assert function(small, other).reason is None
    for found in (function(small, large), function(large, small), function([0.0, 0.0], [0.0, 0.0])):
        assert "no variance" in found.reason


@pytest.mark.parametrize("function", [f for f in OF_SPREAD if "difference" not in f.__name__])
def test_a_difference_that_is_only_rounding_is_none(function):
    wide, small = [-1e12, 1e12, 2e12, -2e12], [0.1, 0.2, 0.1, 0.2]
    for found in (function(wide, small), function(small, wide)):
        name = next(name for name in ("d", "d_z", "statistic") if hasattr(found, name))
        assert getattr(found, name) == 0.0
        assert found.reason is None


@pytest.mark.parametrize("function", [welch_difference, student_difference, paired_difference])
def test_without_an_interval_the_difference_itself_is_kept(function):
    for a, b, difference in [([5.0], [2.0], 3.0), ([], [], None), ([math.inf], [1.0], None), ([1.0], [math.nan], None)]:
        found = function(a, b)
        assert (found.estimate, found.low, found.high) == (difference, None, None)
    for found in (welch_difference([], [1.0]), student_difference([1.0], [])):
        assert found.estimate is None
    assert function([4.0, 4.0], [1.0, 1.0]).estimate == 3.0


MANY = range(20)


def stratified(groups, **more):
    return stratified_bootstrap(iqm, groups, np.random.default_rng(0), **more)


def clustered(statistic, clusters, **more):
    return cluster_bootstrap(statistic, clusters, np.random.default_rng(0), **more)


PAIRS_DO_NOT_VARY = "no variance among the paired differences"
NOTHING_VARIES = [3.0, 3.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: tests.student(NOTHING_VARIES, NOTHING_VARIES), "no variance within the groups"),
        (lambda: tests.welch([0.0, 0.0], [0.0, 0.0]), "no variance within the groups"),
        (lambda: cohens_d(NOTHING_VARIES, [1.0, 1.0]), "no variance within either group"),
        (lambda: welch_difference(NOTHING_VARIES, [1.0, 1.0]), "no variance within either group"),
        (lambda: student_difference(NOTHING_VARIES, [1.0, 1.0]), "no variance within either group"),
        (lambda: paired_effect(GOOD, [0.0, 1.0, 3.0, 2.0]), PAIRS_DO_NOT_VARY),
        (lambda: paired_difference([1e6, 2e6 + 1e-7, 3e6], [1e6, 2e6, 3e6]), PAIRS_DO_NOT_VARY),
        (lambda: paired_difference(GOOD, [0.0, 1.0, 3.0, 2.0]), "no variance among the values"),
        (lambda: paired_effect([1.0, 2.0], [0.5, 1.2]), "Hedges' correction needs df of at least 2"),
        (lambda: bootstrap_mean([1.0], np.random.default_rng(0)), FEW),
        (lambda: bootstrap_mean([1.0, math.nan], np.random.default_rng(0)), NOT_FINITE),
        (lambda: t_interval(NOTHING_VARIES), "no variance among the values"),
        (lambda: spread(NOTHING_VARIES), "no variance among the values"),
        (lambda: pearson(NOTHING_VARIES, GOOD), "no variance among the values"),
        (lambda: pearson(GOOD, [0.0, 0.0, 0.0, 0.0]), "no variance among the values"),
        (lambda: pearson([1, 2, 3], [1, 2, 3]), "n = 3: at least 4 values a group are needed"),
        (lambda: pearson(GOOD, GOOD), "a perfect correlation has no interval of this kind"),
        (lambda: tests.permutation(MANY, MANY), "137846528820 splits are too many to enumerate: pass a generator"),
        (lambda: tests.sign_flip(MANY, MANY), "1048576 sign patterns are too many to enumerate: pass a generator"),
        (lambda: tests.sign_test(0, 0), "no decided comparison"),
        (lambda: mcnemar(0, 0), "the two never disagree"),
        (lambda: kappa([], []), "no item was rated twice"),
        (lambda: kappa("aa", "aa"), "both raters gave one and the same label"),
        (lambda: summarize(0, 0, 0), "no comparison"),
        (lambda: summarize(1, 0, 0), "one comparison has no standard error"),
        (lambda: summarize(0, 3, 0), "every comparison is a tie: read the Wilson interval on half counts"),
        (lambda: crossed(np.zeros((2, 0))), "no comparison"),
        (lambda: crossed_mean([[1.0, math.nan]]), "a value is not a finite number"),
        (lambda: crossed([[1.0], [0.0]]), "one prompt: no interval over prompts"),
        (lambda: crossed([[1.0, 0.0]]), "over seeds: n = 1: at least 2 values a group are needed"),
        (
            lambda: crossed([[1.0, 1.0]]),
            "no variance between prompts: no interval over prompts; "
            "over seeds: n = 1: at least 2 values a group are needed",
        ),
        (lambda: stratified([[[1.0, 2.0]]]), "1 runs x 2 tasks: at least two runs are needed"),
        (lambda: stratified([np.zeros((2, 0))]), "2 runs x 0 tasks: at least two runs are needed"),
        (lambda: clustered(len, "aaa"), "1 clusters: at least 2 are needed"),
        (lambda: clustered(lambda rows: None, "ab", draws=3), "not defined on these rows"),
        (lambda: length_controlled([1, 0], [7, 7], "ab"), "the difference in length is everywhere the same"),
        (lambda: length_controlled([1, 0], [0, 0], "ab"), "the difference in length is everywhere the same"),
        (
            lambda: length_controlled([1, 1, 0, 0], [5, 4, -3, -9], MANY[:4]),
            "no finite fit: lengths, or one side alone, tell every winner",
        ),
    ],
)  # fmt: skip
def test_the_reason_is_the_sentence_that_the_report_prints(call, reason):
    assert call().reason == reason


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t_interval([[1.0]]), "expected a flat list of numbers, got the shape (1, 1)"),
        (lambda: crossed([1.0]), "expected rows of numbers of one length, got the shape (1,)"),
        (lambda: t_interval(GOOD, 95.0), "confidence is a share between 0 and 1, got 95.0"),
        (lambda: wilson(11, 10), "successes must lie between 0 and n, got 11 of 10"),
        (lambda: paired_difference([1.0], GOOD), "paired values need equal lengths, got 1 and 4"),
        (lambda: paired_effect(GOOD, [1.0]), "paired values need equal lengths, got 4 and 1"),
        (lambda: tests.paired_student([1.0], GOOD), "paired values need equal lengths, got 1 and 4"),
        (lambda: tests.sign_flip([1.0], GOOD), "paired values need equal lengths, got 1 and 4"),
        (lambda: tests.sign_test(-1, 2), "counts cannot be negative, got -1 and 2"),
        (lambda: summarize(1, -1, 0), "counts cannot be negative, got 1/-1/0"),
        (lambda: crossed([[0.0, 1.1]]), "a win rate is made of scores between 0 and 1"),
        (lambda: pearson([1], [1, 2]), "pairs of values: got 1 and 2"),
        (lambda: brier([0.5], []), "one outcome a prediction: got 1 and 0"),
        (lambda: reliability([1.2], [1], [0, 1, 1]), "probabilities lie outside 0.0..1.0"),
        (lambda: reliability([0.4], [1], [0.5, 0.8, 1.0]), "probabilities lie outside 0.5..1.0"),
        (lambda: kappa("a", ""), "two raters of the same items: got 1 and 0 labels"),
        (lambda: holm([0.5, 1.2]), "a p value lies between 0 and 1, got 1.2"),
        (lambda: benjamini_hochberg([-0.1]), "a p value lies between 0 and 1, got -0.1"),
        (lambda: power.unpaired_power(1.0, 1), "a t test needs at least 2 runs a method, got 1"),
        (lambda: power.least_effect(3, 0.05), "power must lie between alpha and 1, got 0.05"),
        (lambda: power.least_effect(3, 1.0), "power must lie between alpha and 1, got 1.0"),
        (lambda: power.prompts_needed(1.1), "a rate lies between 0 and 1, got 1.1"),
        (lambda: probability_of_improvement([[1.0]], [[1.0, 2.0]]), "the same tasks on both sides: got 1 and 2"),
        (lambda: length_controlled([1.0], [1.0, 2.0], [1, 1, 1]), "one length and cluster an outcome: got 1, 2 and 3"),
        (lambda: worst_drawdown([1.0, math.nan]), "a value is not a finite number"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named_with_what_came(call, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        call()


@pytest.mark.parametrize("confidence", [0.0, 1.0, -0.5])
@pytest.mark.parametrize(
    "function",
    [
        normal_quantile, lambda c: t_quantile(c, 3), lambda c: wilson(1, 2, c), lambda c: t_interval([], c),
        lambda c: welch_difference([], [], c), lambda c: student_difference([], [], c),
        lambda c: paired_difference(GOOD, [0.0, 0.0, 1.0, 1.0], c), lambda c: pearson([], [], c),
        lambda c: bootstrap_mean([], np.random.default_rng(0), 1, c), lambda c: spread([], c),
        lambda c: cohens_d([], [], c), lambda c: paired_effect([], [], c), lambda c: summarize(0, 0, 0, c),
        lambda c: length_controlled([], [], [], c), lambda c: stratified([[[1.0]]], confidence=c),
        lambda c: clustered(len, "a", confidence=c),
    ],
)  # fmt: skip
def test_a_confidence_is_looked_at_before_the_values(function, confidence):
    with pytest.raises(ValueError, match=f"^confidence is a share between 0 and 1, got {confidence}$"):
        function(confidence)


@pytest.mark.parametrize("values", [[1e200, -1e200, 1e199], [1e-200, 3e-200, 2e-200]])
def test_sizes_whose_squares_leave_the_range(values):
    for function in (cohens_d, tests.student, tests.welch, welch_difference, student_difference):
        check(function(values, [value / 3.0 for value in values]))
    for function in (t_interval, spread):
        check(function(values))


def test_what_was_found_once_stays_found():
    for function in (welch_difference, student_difference, paired_difference):
        check(function([math.inf], [math.inf]))
    check(pearson([0.0, 0.0, 0.0, 1e9], [0.0, 0.0, 0.0, 1e150]))
    for outcomes in ([0.0, 0.5, 0.5], [0.0, 0.5, 0.5, 0.5]):
        found = length_controlled(outcomes, [-1e9, -1e9, -3.0, -1e9][: len(outcomes)], list(range(len(outcomes))))
        check(found)
    found = length_controlled([0.0, 0.5, 0.5], [-1e9, -1e9, -3.0], [0, 1, 2])
    assert found.low is None
    assert "no variance" in found.reason
    assert summarize(0, 0, 1).reason == "one comparison has no standard error"
