"""Agreement, multiplicity, power and aggregates."""

import itertools
import math

import known_answers as vectors
import numpy as np
import pytest
from scipy import stats

from gemma_alignment.statistics import power
from gemma_alignment.statistics.aggregate import (
    cluster_bootstrap,
    iqm,
    probability_of_improvement,
    stratified_bootstrap,
)
from gemma_alignment.statistics.agreement import kappa, mcnemar
from gemma_alignment.statistics.multiplicity import benjamini_hochberg, holm

EXACT = 1e-8
FIRST = ["A", "A", "B", "t", "B", "A", "t", "B", "A", "B"]
SECOND = ["A", "B", "B", "t", "B", "A", "A", "B", "A", "t"]


def test_kappa_known_answer():
    r = kappa(FIRST, SECOND)
    assert r.kappa == pytest.approx(0.53125, abs=1e-12)
    assert (r.agreement, r.n) == (0.7, 10)


def test_kappa_does_not_read_the_names_of_the_labels():
    names = {"A": 3, "B": None, "t": "A"}
    renamed = kappa([names[x] for x in FIRST], [names[x] for x in SECOND])
    assert renamed == kappa(FIRST, SECOND)
    assert kappa(FIRST, FIRST).kappa == 1.0


def test_kappa_of_nothing_but_one_label_is_undefined():
    r = kappa(["A"] * 5, ["A"] * 5)
    assert (r.kappa, r.agreement, r.n) == (None, 1.0, 5)
    assert "one and the same" in r.reason
    assert kappa([], []).reason
    with pytest.raises(ValueError, match="two raters"):
        kappa(["A"], [])


def test_mcnemar():
    assert mcnemar(3, 6).p == pytest.approx(0.5078125, abs=1e-12)
    assert (mcnemar(3, 6).statistic, mcnemar(3, 6).floor) == (3.0, 2 / 2**9)
    assert mcnemar(0, 0).p is None
    assert mcnemar(0, 0).reason


def test_holm_and_bh_known_answers():
    assert holm([0.1, 0.2, 0.013, 0.04]) == pytest.approx([0.2, 0.2, 0.052, 0.12], abs=1e-12)
    assert benjamini_hochberg([0.1, 0.2, 0.013, 0.04]) == pytest.approx([4 / 30, 0.2, 0.052, 0.08], abs=1e-12)
    eight = [0.001, 0.008, 0.039, 0.041, 0.042, 0.06, 0.074, 0.205]
    assert holm(eight) == pytest.approx([0.008, 0.056, *[0.234] * 6], abs=1e-12)
    expected = [0.008, 0.032, 0.0672, 0.0672, 0.0672, 0.08, 0.08457142857142856, 0.205]
    assert benjamini_hochberg(eight) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("adjust", [holm, benjamini_hochberg])
def test_adjusted_values_are_monotone_and_keep_their_places(adjust):
    rng = np.random.default_rng(0)
    for _ in range(50):
        p = rng.random(6).tolist()
        adjusted = adjust(p)
        assert all(a >= raw for a, raw in zip(adjusted, p, strict=True))
        order = np.argsort(p)
        assert np.all(np.diff(np.array(adjusted)[order]) >= 0)
        assert adjust(p[::-1]) == adjusted[::-1]


def test_no_adjusted_value_is_above_one():
    assert holm([0.9, 0.4, 0.8]) == [1.0, 1.0, 1.0]
    assert holm([0.0, 1.0]) == benjamini_hochberg([0.0, 1.0]) == [0.0, 1.0]
    assert benjamini_hochberg([0.9, 0.4, 1.0]) == pytest.approx([1.0, 1.0, 1.0])


def test_a_test_that_was_not_made_is_no_member_of_the_family():
    assert holm([0.02, None, 0.04]) == [0.04, None, 0.04]
    assert holm([]) == []
    with pytest.raises(ValueError, match="between 0 and 1"):
        holm([1.2])


@pytest.mark.parametrize("n", vectors.UNPAIRED_POWER)
def test_unpaired_power(n):
    for d, expected in vectors.UNPAIRED_POWER[n].items():
        assert power.unpaired_power(d, n) == pytest.approx(expected, abs=5.1e-5)
        assert power.unpaired_power(-d, n) == power.unpaired_power(d, n)


@pytest.mark.parametrize("n", vectors.PAIRED_POWER)
def test_paired_power(n):
    for d_z, expected in vectors.PAIRED_POWER[n].items():
        assert power.paired_power(d_z, n) == pytest.approx(expected, abs=5.1e-5)


def test_power_at_no_effect_is_alpha():
    assert power.unpaired_power(0, 3) == pytest.approx(0.05, abs=1e-10)
    assert power.unpaired_power(0, 3, alpha=0.01) == pytest.approx(0.01, abs=1e-10)


@pytest.mark.parametrize(("n", "d"), vectors.LEAST_EFFECT.items())
def test_least_effect(n, d):
    mine = power.least_effect(n)
    # The stored root was found to about 1e-6; the equation it solves is checked to 1e-10.
    assert mine == pytest.approx(d, abs=2e-6)
    assert power.unpaired_power(mine, n) == pytest.approx(0.8, abs=1e-10)
    strict = power.least_effect(n, 0.9, alpha=0.001)
    assert power.unpaired_power(strict, n, alpha=0.001) == pytest.approx(0.9, abs=1e-10)


@pytest.mark.parametrize(("d", "n"), vectors.SEEDS_NEEDED.items())
def test_seeds_needed(d, n):
    assert power.seeds_needed(d) == n
    assert power.seeds_needed(-d) == n
    assert power.unpaired_power(d, n) >= 0.8 > power.unpaired_power(d, n - 1)


@pytest.mark.parametrize(("rate", "n"), vectors.PROMPTS_NEEDED.items())
def test_prompts_needed(rate, n):
    assert power.prompts_needed(rate) == n
    assert power.prompts_needed(1 - rate) == n


def test_prompts_needed_where_every_prompt_is_won_or_lost():
    # nothing varies at a rate of 1: n = (z / 2 / (1/2))^2 = 1.96^2, rounded up
    assert power.prompts_needed(0) == power.prompts_needed(1) == 4
    assert power.prompts_needed(0, alpha=0.01) == 7  # 2.576^2
    assert power.prompts_needed(0.6, power=0.9) == 259


def test_power_is_a_probability_that_grows_with_the_effect():
    for n in (2, 3, 10):
        powers = [power.unpaired_power(d / 4, n) for d in range(160)]
        assert powers == sorted(powers)
        assert powers[-1] <= 1.0


def test_the_table_of_power_is_made_of_the_powers():
    table = power.power_table([3, 10], [0.8, 2])
    assert table[3] == {0.8: power.unpaired_power(0.8, 3), 2.0: power.unpaired_power(2, 3)}
    assert table[10][2.0] == pytest.approx(0.9882, abs=5.1e-5)
    assert power.power_table([3], [1.0], alpha=0.01)[3][1.0] < table[3][0.8]


def test_no_number_of_runs_finds_nothing():
    assert power.seeds_needed(0) is None
    assert power.prompts_needed(0.5) is None
    with pytest.raises(ValueError, match="at least 2"):
        power.unpaired_power(1.0, 1)
    with pytest.raises(ValueError, match="between 0 and 1"):
        power.prompts_needed(1.1)


def test_the_search_for_a_number_of_runs_ends_at_ten_thousand():
    last = power.least_effect(power.MAX_SEEDS)
    assert (power.MAX_SEEDS, round(last, 4)) == (10_000, 0.0396)
    assert power.seeds_needed(last * 1.000001) == 10_000
    assert power.seeds_needed(last * 0.999999) is None
    assert power.seeds_needed(1e-300) is None
    # The other end: two runs a method are the fewest that a t test takes.
    assert power.seeds_needed(6.0) == power.seeds_needed(1e6) == 2
    assert power.seeds_needed(5.65) == 3


@pytest.mark.parametrize(("target", "alpha", "n"), [(0.8, 0.05, 17), (0.9, 0.05, 23), (0.8, 0.01, 26)])
def test_seeds_needed_at_other_powers_and_levels(target, alpha, n):
    """At a d of 1, held against scipy's own noncentral t."""

    def reached(runs):
        ncp, df = math.sqrt(runs / 2), 2 * runs - 2
        critical = stats.t.ppf(1 - alpha / 2, df)
        return stats.nct.sf(critical, df, ncp) + stats.nct.cdf(-critical, df, ncp)

    assert reached(n) >= target > reached(n - 1)
    assert power.seeds_needed(1.0, target, alpha) == n


def test_aggregates_known_answers():
    assert iqm(vectors.RUNS_A) == pytest.approx(0.6733333333333333, abs=EXACT)
    assert iqm(vectors.RUNS_B) == pytest.approx(0.6316666666666667, abs=EXACT)
    assert iqm([1.0, 2.0, 9.0]) == 4.0
    assert iqm([1.0, 2.0, 3.0, 94.0]) == 2.5
    assert iqm([]) is None
    improvement = probability_of_improvement(vectors.RUNS_A, vectors.RUNS_B)
    assert improvement == pytest.approx(0.8472222222222222, abs=EXACT)
    column = [[[float(v)] for v in run] for run in ([1, 2, 3], [2, 2, 4])]
    assert probability_of_improvement(*column) == pytest.approx(1 / 3, abs=1e-12)


@pytest.mark.parametrize("v", vectors.VECTORS.values(), ids=vectors.VECTORS)
def test_probability_of_improvement_of_one_task(v):
    mine = probability_of_improvement([[x] for x in v.x], [[y] for y in v.y])
    assert mine == pytest.approx(v.improvement, abs=1e-12)
    back = probability_of_improvement([[y] for y in v.y], [[x] for x in v.x])
    assert mine + back == pytest.approx(1.0)


def test_one_run_a_side_can_be_better_and_none_cannot():
    assert (probability_of_improvement([[1.0]], [[0.0]]), probability_of_improvement([[0.0]], [[1.0]])) == (1.0, 0.0)
    for a, b in ((np.zeros((0, 1)), [[1.0]]), ([[1.0]], np.zeros((0, 1)))):
        assert probability_of_improvement(a, b) is None


class Recorded:
    """A statistic that keeps what it gave."""

    def __init__(self, statistic):
        self.statistic, self.values = statistic, []

    def __call__(self, *groups):
        self.values.append(self.statistic(*groups))
        return self.values[-1]


def stratified(statistic, generator, **more):
    return stratified_bootstrap(statistic, [[[0.0], [1.0], [3.0], [7.0]]], generator, **more)


def clustered(statistic, generator, **more):
    return cluster_bootstrap(lambda rows: statistic(np.array([0.0, 1.0, 3.0, 7.0])[rows]), range(4), generator, **more)


@pytest.mark.parametrize("bootstrap", [stratified, clustered])
def test_a_bootstrap_is_the_percentiles_of_what_it_drew(bootstrap):
    kept = Recorded(lambda values: float(values.mean()))
    found = bootstrap(kept, np.random.default_rng(0))
    drawn = sorted(kept.values)
    drawn.remove(2.75)
    assert (found.estimate, len(drawn)) == (2.75, 2_000)
    assert (found.low, found.high) == pytest.approx(np.percentile(drawn, [2.5, 97.5]), abs=1e-12)
    every = {sum(picks) / 4 for picks in itertools.product([0, 1, 3, 7], repeat=4)}
    assert set(drawn) == every
    narrow = bootstrap(Recorded(lambda values: float(values.mean())), np.random.default_rng(0), confidence=0.5)
    assert (narrow.low, narrow.high) == pytest.approx(np.percentile(drawn, [25.0, 75.0]), abs=1e-12)


@pytest.mark.parametrize("bootstrap", [stratified, clustered])
def test_draws_without_the_statistic_are_left_out(bootstrap):
    def largest_gap(values):  # not defined where one value was drawn again and again
        return float(np.ptp(values)) if np.ptp(values) > 0 else None

    found = bootstrap(largest_gap, np.random.default_rng(0), draws=300)
    assert (found.estimate, found.reason) == (7.0, None)
    assert 1.0 <= found.low <= found.high == 7.0
    only_resampled = bootstrap(lambda v: None if np.ptp(v) == 7.0 else 1.0, np.random.default_rng(0), draws=300)
    assert (only_resampled.estimate, only_resampled.reason) == (None, "not defined on these rows")


def test_two_runs_or_clusters_are_enough_to_resample():
    assert stratified_bootstrap(iqm, [[[0.0], [1.0]]], np.random.default_rng(0), 50).high == 1.0
    rows = []

    def size(picked):
        rows.append(tuple(picked.tolist()))
        return float(len(picked))

    found = cluster_bootstrap(size, "aba", np.random.default_rng(0), 50)
    assert (found.estimate, found.low, found.high) == (3.0, 2.0, 4.0)
    assert rows[-1] == (0, 1, 2)
    assert set(rows[:-1]) == {(0, 2, 0, 2), (0, 2, 1), (1, 0, 2), (1, 1)}


def test_stratified_bootstrap_resamples_within_its_tasks():
    runs = [[0.0, 10.0], [1.0, 11.0], [2.0, 12.0]]
    many = np.random.default_rng(9).normal(size=(12, 3))
    first, again, other = (stratified_bootstrap(iqm, [many], np.random.default_rng(seed), 400) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    # Mixing tasks would let the column means leave [0, 2] and [10, 12].
    left = stratified_bootstrap(lambda m: float(m[:, 0].max()), [runs], np.random.default_rng(0), 400)
    assert left.high <= 2.0
    # A difference of two groups is resampled on both sides, each with its own number of runs.
    below, above = [[v] for v in (0.0, 1.0, 2.0)], [[v] for v in (10.0, 11.0, 12.0, 13.0)]
    gap = stratified_bootstrap(lambda a, b: float(b.mean() - a.mean()), [below, above], np.random.default_rng(0), 400)
    assert gap.estimate == pytest.approx(10.5)
    assert 8.0 <= gap.low < 9.7
    assert 11.3 < gap.high <= 13.0
    assert stratified_bootstrap(probability_of_improvement, [above, below], np.random.default_rng(0), 50).low == 1.0
    assert stratified_bootstrap(iqm, [[[1.0, 2.0]]], np.random.default_rng(0)).reason


def test_cluster_bootstrap_keeps_rows_of_one_cluster_together():
    """Ten equal rows a cluster are one observation: the interval is that of the clusters' own values."""
    values = np.repeat(np.random.default_rng(3).normal(size=40), 10)
    prompts = np.repeat(np.arange(40), 10).tolist()

    def mean(rows):
        return float(values[rows].mean())

    found = cluster_bootstrap(mean, prompts, np.random.default_rng(0), 300)
    alone = cluster_bootstrap(lambda rows: float(values[::10][rows].mean()), range(40), np.random.default_rng(0), 300)
    assert (found.estimate, found.low, found.high) == pytest.approx((alone.estimate, alone.low, alone.high), abs=1e-12)
    pooled = cluster_bootstrap(mean, range(400), np.random.default_rng(0), 300)
    assert pooled.high - pooled.low < 0.5 * (found.high - found.low)
    assert cluster_bootstrap(mean, prompts, np.random.default_rng(0), 300) == found
    assert "1 clusters" in cluster_bootstrap(mean, [1] * 400, np.random.default_rng(0)).reason
    assert "not defined" in cluster_bootstrap(lambda rows: None, prompts, np.random.default_rng(0), 5).reason
