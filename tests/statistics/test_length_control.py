"""The win rate at equal length: closed forms, an independent maximiser, and what is refused."""

import math

import numpy as np
import pytest
from scipy import optimize

from gemma_alignment.statistics.intervals import t_quantile
from gemma_alignment.statistics.length_control import length_controlled


def logit(p):
    return math.log(p / (1 - p))


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def two_lengths(long_wins, long_n, short_wins, short_n):
    """A is longer by 10 in ``long_n`` comparisons and shorter by 10 in ``short_n``; each has its own prompt."""
    y = [1.0] * long_wins + [0.0] * (long_n - long_wins) + [1.0] * short_wins + [0.0] * (short_n - short_wins)
    x = [10] * long_n + [-10] * short_n
    return y, x, list(range(len(y)))


def test_two_lengths_in_closed_form():
    """With two lengths the model is saturated: theta is the mean of the two logits, whatever tanh does."""
    y, x, prompts = two_lengths(32, 40, 16, 40)
    found = length_controlled(y, x, prompts)
    p, q = 0.8, 0.4
    theta = (logit(p) + logit(q)) / 2
    assert found.rate == pytest.approx(sigmoid(theta), abs=1e-10)
    # The robust variance of a logit is 1 / (n p (1 - p)) here, times G / (G - 1).
    variance = (1 / (40 * p * (1 - p)) + 1 / (40 * q * (1 - q))) / 4 * 80 / 79
    half = t_quantile(0.95, 79) * math.sqrt(variance)
    assert found.low == pytest.approx(sigmoid(theta - half), abs=1e-10)
    assert found.high == pytest.approx(sigmoid(theta + half), abs=1e-10)
    slope = (logit(p) - logit(q)) / 2 / math.tanh(1.0)  # equal numbers of +-10: their sd is 10
    assert found.slope == pytest.approx(slope, abs=1e-9)
    assert found.slope_low < slope < found.slope_high
    assert (found.n, found.clusters) == (80, 80)


def test_a_judge_that_only_likes_length_leaves_one_half():
    """A is longer three times in four and wins by that alone: 65% raw, 50% at equal length."""
    y, x, prompts = two_lengths(48, 60, 4, 20)
    assert np.mean(y) == 0.65
    assert length_controlled(y, x, prompts).rate == pytest.approx(0.5, abs=1e-10)


def test_against_an_independent_maximiser():
    rng = np.random.default_rng(3)
    for _ in range(20):
        x = rng.normal(2.0, 30.0, 60)
        y = rng.choice([0.0, 0.5, 1.0], 60)
        z = np.tanh(x / np.std(x))

        def loss(beta, z=z, y=y):
            eta = beta[0] + beta[1] * z
            return float(np.sum(np.logaddexp(0.0, eta) - y * eta))

        best = optimize.minimize(loss, [0.0, 0.0], method="BFGS", options={"gtol": 1e-10}).x
        found = length_controlled(y, x, range(60))
        assert found.rate == pytest.approx(sigmoid(best[0]), abs=1e-6)
        assert found.slope == pytest.approx(best[1], abs=1e-5)


def test_swapping_the_sides_mirrors_everything():
    rng = np.random.default_rng(4)
    x, y = rng.normal(5.0, 20.0, 90), rng.choice([0.0, 0.5, 1.0], 90, p=[0.2, 0.2, 0.6])
    prompts = np.arange(90) % 30
    one, other = length_controlled(y, x, prompts), length_controlled(1 - y, -x, prompts)
    assert other.rate == pytest.approx(1 - one.rate, abs=1e-10)
    assert (other.low, other.high) == pytest.approx((1 - one.high, 1 - one.low), abs=1e-10)
    assert other.slope == pytest.approx(one.slope, abs=1e-9)
    scaled = length_controlled(y, 7 * x, prompts)
    assert (scaled.rate, scaled.low) == pytest.approx((one.rate, one.low), abs=1e-10)


def test_repeating_every_seed_of_a_prompt_adds_no_certainty():
    """Three equal seeds are one observation a prompt: the clusters see that, single rows would not."""
    y, x, prompts = two_lengths(32, 40, 16, 40)
    once, thrice = length_controlled(y, x, prompts), length_controlled(y * 3, x * 3, prompts * 3)
    assert (thrice.rate, thrice.low, thrice.high) == pytest.approx((once.rate, once.low, once.high), abs=1e-9)
    pooled = length_controlled(y * 3, x * 3, range(240))
    assert pooled.high - pooled.low < 0.7 * (once.high - once.low)


@pytest.mark.parametrize(
    ("y", "x", "prompts", "word"),
    [
        ([1, 1, 0, 0], [5, 4, -3, -9], [1, 2, 3, 4], "no finite fit"),
        ([1, 1, 1, 1], [5, -4, 3, -9], [1, 2, 3, 4], "no finite fit"),
        ([1, 0, 1, 0], [7, 7, 7, 7], [1, 2, 3, 4], "everywhere the same"),
        ([1, 0, 1, 0], [7, 2, 1, 4], [1, 1, 1, 1], "1 clusters"),
        ([], [], [], "0 clusters"),
    ],
)
def test_what_has_no_answer_says_why(y, x, prompts, word):
    found = length_controlled(y, x, prompts)
    assert found.rate is found.low is found.high is None
    assert word in found.reason


def test_ties_alone_have_a_rate_and_no_interval():
    found = length_controlled([0.5] * 6, [1, 2, 3, -1, -2, 5], range(6))
    assert (found.rate, found.low) == (0.5, None)
    assert found.reason == "no variance around the fit"


def test_a_prompt_whose_answers_cancel_out_is_a_cluster_like_any_other():
    """Half of the answers win at either length, one prompt has a win and a loss: its score is 0, it still counts."""
    found = length_controlled([1, 0] * 4, [10] * 4 + [-10] * 4, [0, 0, 1, 2, 3, 4, 5, 6])
    # theta = 0 with H = 8 / 4; six clusters have scores of +-1/2, the seventh 0.
    half = t_quantile(0.95, 6) * math.sqrt(7 / 6 * 6 / 4) / 2
    assert (found.rate, found.low, found.high) == pytest.approx((0.5, sigmoid(-half), sigmoid(half)), abs=1e-12)
    assert found.clusters == 7


def test_two_prompts_are_enough():
    found = length_controlled([1, 0, 1, 1, 0, 0, 1], [10, 10, 10, -10, -10, -10, -10], "abababa")
    assert found.clusters == 2
    assert found.low < found.rate < found.high


def test_unequal_numbers_are_refused():
    with pytest.raises(ValueError, match="one length and cluster an outcome"):
        length_controlled([1.0], [1.0, 2.0], [1])
