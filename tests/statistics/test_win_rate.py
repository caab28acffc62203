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

from gemma_alignment.statistics.intervals import wilson
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
    with pytest.raises(ValueError, match="negative"):
        summarize(1, -1, 0)


@pytest.mark.parametrize("counts", [(0, 0, 10), (7, 0, 3), (57, 0, 43), (10, 0, 0)])
def test_without_ties_it_is_wilson(counts):
    assert tie_aware_interval(*counts) == pytest.approx(wilson(counts[0], sum(counts)), abs=1e-12)


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
    bootstrap = prompt_bootstrap(CROSSED, np.random.default_rng(0))
    assert (bootstrap.low, bootstrap.high) == pytest.approx((1 / 3, 0.9166666666666667), abs=EXACT)


def test_one_seed_has_the_plain_standard_error():
    r = crossed([[1.0, 0.5, 0.0, 1.0, 1.0]])
    assert r.se_prompt == pytest.approx(summarize(3, 1, 1).sem, abs=1e-12)
    assert (r.seed_low, r.se_seed, r.se_two_way, r.two_way_low) == (None, None, None, None)
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


def test_certainty_is_not_claimed_from_no_variance():
    r = crossed([[1.0, 1.0], [1.0, 1.0]])
    assert r.rate == 1.0
    assert (r.prompt_low, r.seed_low, r.two_way_low) == (None, None, None)
    assert "prompts" in r.reason


def test_what_is_no_win_rate_is_refused():
    with pytest.raises(ValueError, match="between 0 and 1"):
        crossed([[1.0, 2.0]])
    with pytest.raises(ValueError, match="rows"):
        crossed(np.array([1.0, 0.0]))
    assert crossed(np.zeros((3, 0))).reason == "no comparison"
