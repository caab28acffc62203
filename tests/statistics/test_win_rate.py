"""Win rates: known answers, identities, coverage."""

import dataclasses

import numpy as np
import pytest
from known_answers import (
    CROSSED,
    CROSSED_ERRORS,
    CROSSED_SEED_T,
    CROSSED_TWO_WAY_BEFORE_FLOOR,
    TIES,
)

from gemma_alignment.statistics.intervals import t_interval, t_quantile, wilson
from gemma_alignment.statistics.win_rate import (
    crossed,
    crossed_mean,
    prompt_bootstrap,
    standard_errors,
    summarize,
    tie_aware_interval,
)

EXACT = 1e-8


@pytest.mark.parametrize(("counts", "expected"), TIES.items())
def test_known_answers(counts, expected):
    r = summarize(*counts)
    assert (r.rate, r.sem, r.low, r.high) == pytest.approx(expected[0], abs=EXACT)
    assert (r.half_count_low, r.half_count_high) == pytest.approx(expected[1], abs=EXACT)
    decisive = (r.decisive_rate, r.decisive_low, r.decisive_high)
    assert decisive == pytest.approx(expected[2][:3], abs=EXACT)
    assert r.sign_test_p == pytest.approx(expected[2][3], rel=1e-8)
    assert r.reason is None


def test_every_number_of_a_summary_at_another_confidence():
    r = summarize(6, 2, 4, 0.8)
    assert (r.wins, r.ties, r.losses, r.rate, r.decisive_rate) == (6, 2, 4, 7 / 12, 0.6)
    assert (r.low, r.high) == tie_aware_interval(6, 2, 4, 0.8)
    assert (r.half_count_low, r.half_count_high) == wilson(7, 12, 0.8)
    assert (r.decisive_low, r.decisive_high) == wilson(6, 10, 0.8)
    assert r.sign_test_floor == 2 / 2**10
    two = summarize(1, 0, 1)
    assert (two.sem, two.reason) == (0.5, None)
    one = summarize(0, 0, 1)
    assert (one.low, one.high) == pytest.approx(wilson(0, 1), abs=1e-12)
    assert (one.rate, one.sem, one.decisive_rate, one.sign_test_p) == (0.0, None, 0.0, 1.0)


def test_all_ties_decide_nothing():
    r = summarize(0, 200, 0)
    assert (r.rate, r.low, r.high, r.sem) == (0.5, 0.5, 0.5, 0.0)
    assert (r.half_count_low, r.half_count_high) == pytest.approx((0.43136085960389187, 0.5686391403961082), abs=EXACT)
    assert (r.decisive_rate, r.decisive_low, r.sign_test_p) == (None, None, None)
    assert "tie" in r.reason


def test_no_comparison_is_no_rate():
    r = dataclasses.asdict(summarize(0, 0, 0))
    assert (r.pop("wins"), r.pop("ties"), r.pop("losses")) == (0, 0, 0)
    assert r.pop("reason") == "no comparison"
    assert set(r.values()) == {None}
    assert tie_aware_interval(0, 0, 0) == (None, None)
    for counts in ((1, -1, 0), (-1, 1, 1), (1, 1, -1)):
        with pytest.raises(ValueError, match="counts cannot be negative, got "):
            summarize(*counts)


@pytest.mark.parametrize("counts", [(0, 0, 10), (7, 0, 3), (57, 0, 43), (10, 0, 0)])
def test_without_ties_it_is_wilson(counts):
    assert tie_aware_interval(*counts) == pytest.approx(wilson(counts[0], sum(counts)), abs=1e-12)


@pytest.mark.parametrize("n", range(1, 26))
def test_rounding_leads_no_interval_out_of_its_range(n):
    assert tie_aware_interval(n, 0, 0)[1] <= 1.0
    assert tie_aware_interval(0, 0, n)[0] >= 0.0
    assert (wilson(0, n)[0], wilson(n, n)[1]) == (0.0, 1.0)


@pytest.mark.parametrize("counts", TIES)
def test_swapping_wins_and_losses_mirrors(counts):
    wins, ties, losses = counts
    r, m = summarize(wins, ties, losses), summarize(losses, ties, wins)
    assert (r.rate, r.low, r.high) == pytest.approx((1 - m.rate, 1 - m.high, 1 - m.low), abs=1e-12)
    assert r.sign_test_p == m.sign_test_p


@pytest.mark.parametrize("counts", TIES)
def test_sem_is_that_of_the_scores(counts):
    wins, ties, losses = counts
    scores = np.repeat([1.0, 0.5, 0.0], [wins, ties, losses])
    assert summarize(*counts).sem == pytest.approx(scores.std(ddof=1) / np.sqrt(scores.size), abs=1e-12)


def test_crossed_known_answers():
    r = crossed(CROSSED)
    assert r.rate == pytest.approx(2 / 3, abs=1e-12)
    errors = {"iid": r.se_iid, "prompt": r.se_prompt, "seed": r.se_seed, "two_way": r.se_two_way}
    assert errors == pytest.approx(CROSSED_ERRORS, abs=EXACT)
    assert r.per_seed == (0.625, 0.875, 0.5)
    assert (r.seeds, r.prompts, r.seed_df) == (3, 4, 2)
    unfloored = np.sqrt(r.se_prompt**2 + r.se_seed**2 - r.se_iid**2)
    assert unfloored == pytest.approx(CROSSED_TWO_WAY_BEFORE_FLOOR, abs=EXACT)
    assert (r.seed_low, r.seed_high) == pytest.approx((CROSSED_SEED_T[0], 1.0), abs=EXACT)
    free = crossed_mean(CROSSED)
    assert (free.seed_low, free.seed_high) == pytest.approx(CROSSED_SEED_T, abs=EXACT)
    for confidence, prompt_t, two_way_t in ((0.95, 3.182446305284263, 4.302652729911275), (0.8, 1.6377444, 1.8856181)):
        mean, bounded = crossed_mean(CROSSED, confidence), crossed(CROSSED, confidence)
        half = prompt_t * r.se_prompt
        assert (mean.prompt_low, mean.prompt_high) == pytest.approx((2 / 3 - half, 2 / 3 + half), abs=1e-7)
        half = two_way_t * r.se_two_way
        assert (mean.two_way_low, mean.two_way_high) == pytest.approx((2 / 3 - half, 2 / 3 + half), abs=1e-7)
        seeds = t_interval(r.per_seed, confidence)
        assert (mean.seed_low, mean.seed_high) == (seeds.low, seeds.high)
        for end in ("prompt_low", "prompt_high", "seed_low", "seed_high", "two_way_low", "two_way_high"):
            assert getattr(bounded, end) == pytest.approx(min(1.0, max(0.0, getattr(mean, end))), abs=1e-12)
    bootstrap = prompt_bootstrap(CROSSED, np.random.default_rng(0))
    assert (bootstrap.low, bootstrap.high) == pytest.approx((1 / 3, 0.9166666666666667), abs=EXACT)


def test_the_joint_interval_adds_both_variances_and_has_satterthwaites_degrees_of_freedom():
    """The variances of CROSSED are 7/216 and 7/576: df = 792² / (216² / 2 + 576² / 3)."""
    r = crossed_mean(CROSSED)
    assert (r.se_prompt**2, r.se_seed**2) == pytest.approx((7 / 216, 7 / 576))
    assert r.joint_df == pytest.approx(792**2 / (216**2 / 2 + 576**2 / 3))
    half = t_quantile(0.95, r.joint_df) * np.sqrt(7 / 216 + 7 / 576)
    assert (r.joint_low, r.joint_high) == pytest.approx((2 / 3 - half, 2 / 3 + half))
    assert (crossed(CROSSED).joint_low, crossed(CROSSED).joint_high) == pytest.approx((2 / 3 - half, 1.0))
    turned = crossed_mean(np.transpose(CROSSED))
    assert (turned.joint_low, turned.joint_high) == pytest.approx((r.joint_low, r.joint_high))


@pytest.mark.parametrize("seeds", [2, 3, 8])
def test_where_one_kind_of_chance_is_missing_the_joint_interval_is_that_of_the_other(seeds):
    values = np.random.default_rng(seeds).normal(size=(seeds, 30)) + 0.5 * np.arange(seeds)[:, None]
    r = crossed_mean(values)
    assert seeds - 1 <= r.joint_df <= seeds + 28
    assert r.joint_high - r.rate > 1.96 * max(r.se_seed, r.se_prompt)
    alike = crossed_mean(np.tile(values[0], (seeds, 1)))
    assert (alike.joint_low, alike.joint_high) == pytest.approx((alike.prompt_low, alike.prompt_high))
    alike = crossed_mean(np.tile(values[:, :1], (1, 30)))
    assert (alike.joint_low, alike.joint_high) == pytest.approx((alike.seed_low, alike.seed_high))


def test_one_seed_has_the_plain_standard_error():
    r = crossed([[1.0, 0.5, 0.0, 1.0, 1.0]])
    assert r.se_prompt == pytest.approx(summarize(3, 1, 1).sem, abs=1e-12)
    assert (r.seed_low, r.se_seed, r.se_two_way, r.two_way_low) == (None, None, None, None)
    assert (r.joint_low, r.joint_high, r.joint_df) == (None, None, None)
    assert "n = 1" in r.reason


def test_identical_seeds_add_nothing():
    row = [1.0, 0.5, 0.0, 1.0, 1.0]
    r = crossed([row, row, row])
    assert r.se_seed == 0.0
    assert r.se_prompt == pytest.approx(crossed([row]).se_prompt, abs=1e-12)
    assert r.seed_low is None
    assert "no variance" in r.reason


def test_order_of_seeds_and_prompts_does_not_matter():
    rng = np.random.default_rng(2)
    scores = rng.choice([0.0, 0.5, 1.0], size=(4, 30))
    shuffled = scores[rng.permutation(4)][:, rng.permutation(30)]
    a, b = standard_errors(scores), standard_errors(shuffled)
    assert a == pytest.approx(b, abs=1e-12)
    assert crossed(shuffled).seed_low == pytest.approx(crossed(scores).seed_low, abs=1e-12)


def test_a_rate_without_an_interval_says_how_many_were_compared():
    empty = crossed(np.zeros((3, 0)))
    assert (empty.rate, empty.seeds, empty.prompts) == (None, 3, 0)
    assert crossed(np.zeros((0, 3))).prompts == 3
    broken = crossed_mean([[0.5, np.nan, 1.0], [0.0, 0.0, 0.0]])
    assert (broken.rate, broken.seeds, broken.prompts) == (None, 2, 3)


def test_a_bootstrap_over_prompts_is_one_of_their_means():
    scores = np.random.default_rng(0).choice([0.0, 0.5, 1.0], size=(3, 40))
    found = prompt_bootstrap(scores, np.random.default_rng(1), 500, 0.8)
    means = scores.mean(axis=0)
    drawn = means[np.random.default_rng(1).integers(0, 40, (500, 40))].mean(axis=1)
    assert (found.low, found.high) == pytest.approx(np.percentile(drawn, [10.0, 90.0]), abs=1e-12)
    scores = np.random.default_rng(0).normal(size=(3, 40))
    by_default, said = (prompt_bootstrap(scores, np.random.default_rng(1), *draws) for draws in ((), (10_000, 0.95)))
    assert by_default == said


def test_the_two_way_error_adds_what_seeds_and_prompts_bring():
    """Where both matter it is the sum less what was counted twice (Cameron, Gelbach & Miller 2011, eq. 2.3)."""
    rng = np.random.default_rng(6)
    scores = 0.2 * rng.normal(size=(5, 1)) + 0.3 * rng.normal(size=(1, 12)) + 0.1 * rng.normal(size=(5, 12))
    v = {name: error**2 for name, error in standard_errors(scores).items()}
    assert v["two_way"] == pytest.approx(v["prompt"] + v["seed"] - v["iid"], rel=1e-12)
    assert v["two_way"] > 1.1 * max(v["prompt"], v["seed"])


@pytest.mark.parametrize("transposed", [False, True])
def test_the_two_way_error_is_not_below_the_larger_of_the_two(transposed):
    """Every prompt is won by one seed of two: the prompts' sums do not vary, the plain error is above the seeds'."""
    scores = np.array([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    v = standard_errors(scores.T if transposed else scores)
    larger, smaller = ("prompt", "seed") if transposed else ("seed", "prompt")
    assert (v["two_way"], v[smaller]) == (v[larger], 0.0)
    assert 0.0 < v[larger] < v["iid"]


def test_sums_of_rounding_errors_count_as_none():
    """Each score may be off by its rounding, so the sum over many prompts by many times that."""
    row = np.tile([1.0, 0.0], 50)
    found = standard_errors(np.array([row, row + 5e-13]))
    assert found["seed"] == 0.0
    assert found["prompt"] > 0.04
    assert standard_errors(np.array([row, row + 1e-9]))["seed"] > 0.0


def test_two_seeds_of_two_prompts_are_enough_for_intervals():
    """By hand: the prompts' sums are 1.5 and 0.5 about 1, so V = 2 (1/4 + 1/4) / 16; t with one degree of freedom."""
    r = crossed_mean([[1.0, 0.5], [0.5, 0.0]])
    half = 12.706204736174694 * 0.25
    for kind in ("prompt", "seed"):
        assert getattr(r, f"se_{kind}") == pytest.approx(0.25)
        assert (getattr(r, f"{kind}_low"), getattr(r, f"{kind}_high")) == pytest.approx((0.5 - half, 0.5 + half))
    assert r.two_way_high - r.rate == pytest.approx(12.706204736174694 * r.se_two_way)
    assert r.joint_df == pytest.approx(2.0)  # two errors of one size with a degree of freedom each
    assert r.joint_high - r.rate == pytest.approx(4.302652729911275 * 0.25 * 2**0.5)


def test_certainty_is_not_claimed_from_no_variance():
    r = crossed([[1.0, 1.0], [1.0, 1.0]])
    assert r.rate == 1.0
    assert (r.prompt_low, r.seed_low, r.two_way_low, r.joint_low, r.joint_df) == (None, None, None, None, None)
    assert "prompts" in r.reason


def test_what_is_no_win_rate_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        crossed([[1.0, 2.0]])
    with pytest.raises(ValueError, match="rows"):
        crossed(np.array([1.0, 0.0]))
    assert crossed(np.zeros((3, 0))).reason == "no comparison"
