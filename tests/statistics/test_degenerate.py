"""Whatever values come in, what goes out is a finite number, or None with a reason."""

import dataclasses
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gemma_alignment.statistics import tests
from gemma_alignment.statistics.aggregate import iqm, probability_of_improvement, stratified_bootstrap
from gemma_alignment.statistics.agreement import kappa, mcnemar
from gemma_alignment.statistics.correlation import pearson, spearman
from gemma_alignment.statistics.effect_size import cohens_d, paired_effect
from gemma_alignment.statistics.intervals import (
    bootstrap_mean,
    paired_difference,
    student_difference,
    t_interval,
    welch_difference,
)
from gemma_alignment.statistics.length_control import length_controlled
from gemma_alignment.statistics.stability import spread
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
