"""GAE against its definition, and credit against a group under shift, scale and permutation."""

import pytest
import torch

from gemma_alignment.objectives.advantages import (
    gae,
    group_centered,
    group_scale,
    group_whiten,
    group_zscore,
    leave_one_out,
)

REWARDS = torch.tensor([[0.0, 0.0, 0.0, 1.0], [0.5, -1.0, 7.0, 7.0]])
VALUES = torch.tensor([[0.5, 0.25, 0.75, 0.5], [1.0, 0.5, 8.0, 8.0]])
MASK = torch.tensor([[True, True, True, True], [True, True, False, False]])
SCORES = torch.tensor([1.0, 2.0, 6.0, -4.0, 0.0, 1.0])
AWKWARD = [-1.152360200881958, 1.85300612449646, 2.0049805641174316]
GROUP_FUNCTIONS = [group_centered, group_zscore, leave_one_out]


def _random(rows=7, columns=11, seed=0):
    chance = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, columns + 1, (rows,), generator=chance)
    mask = torch.arange(columns) < lengths[:, None]
    return *torch.randn(2, rows, columns, generator=chance, dtype=torch.float64), mask


def test_gae_by_hand(gae=gae):
    """γ = .5, λ = .5. Row 2 ends after two tokens: δ = (.5 + .25 − 1, −1 − .5) = (−.25, −1.5)."""
    advantages, returns = gae(REWARDS, VALUES, MASK, 0.5, 0.5)
    # row 1: δ = (−.375, .125, −.5, .5); A_3 = .5, A_2 = −.5 + .125, A_1 = .125 − .09375, …
    expected = [[-0.3671875, 0.03125, -0.375, 0.5], [-0.625, -1.5, 0.0, 0.0]]
    assert advantages.tolist() == expected
    assert torch.equal(returns, (torch.tensor(expected) + VALUES) * MASK)


@pytest.mark.parametrize("seed", range(3))
def test_gae_is_the_discounted_sum_of_its_errors(seed, gae=gae):
    """A_t = Σ_l (γλ)^l δ_{t+l}, written as the double loop of the definition, in plain Python."""
    rewards, values, mask = _random(seed=seed)
    gamma, lam = 0.9, 0.8
    advantages, returns = gae(rewards, values, mask, gamma, lam)
    for row, length in enumerate(mask.sum(1).tolist()):
        r, v = rewards[row, :length].tolist(), [*values[row, :length].tolist(), 0.0]
        errors = [r[t] + gamma * v[t + 1] - v[t] for t in range(length)]
        for t in range(length):
            expected = sum((gamma * lam) ** (k - t) * errors[k] for k in range(t, length))
            assert advantages[row, t].item() == pytest.approx(expected, abs=1e-12)
            assert returns[row, t].item() == pytest.approx(expected + v[t], abs=1e-12)
        assert not advantages[row, length:].any()
        assert not returns[row, length:].any()


def test_gae_at_lambda_1_is_the_return_minus_the_value(gae=gae):
    rewards, values, mask = _random()
    advantages, returns = gae(rewards, values, mask, 1, 1)
    to_come = (rewards * mask).flip(1).cumsum(1).flip(1) * mask
    assert torch.allclose(advantages, to_come - values * mask, atol=1e-12)
    assert torch.allclose(returns, to_come, atol=1e-12)


def test_gae_at_lambda_0_is_the_one_step_error(gae=gae):
    rewards, values, mask = _random()
    advantages, _ = gae(rewards, values, mask, 0.9, 0)
    real = values * mask
    following = torch.cat([real[:, 1:], torch.zeros(len(real), 1).double()], 1)
    assert torch.allclose(advantages, (rewards + 0.9 * following - values) * mask, atol=1e-12)


def test_gae_of_responses_of_one_token_is_the_reward_minus_the_value(gae=gae):
    rewards, values = torch.tensor([[2.0], [-1.0]]), torch.tensor([[0.5], [0.25]])
    advantages, returns = gae(rewards, values, torch.ones(2, 1, dtype=torch.bool), 0.9, 0.95)
    assert advantages.tolist() == [[1.5], [-1.25]]
    assert torch.equal(returns, rewards)


def test_a_perfect_critic_leaves_nothing(gae=gae):
    """V_t = Σ of the rewards to come, γ = 1: every error and every advantage is 0, whatever λ is."""
    rewards, _, mask = _random()
    values = (rewards * mask).flip(1).cumsum(1).flip(1)
    for lam in (0.0, 0.5, 0.95, 1.0):
        assert gae(rewards, values, mask, 1.0, lam)[0].abs().max() < 1e-12


def test_padding_never_reaches_an_advantage(gae=gae):
    """Garbage after the end, and columns of it, change nothing: the value there is 0 (zero bootstrap)."""
    rewards, values, mask = _random()
    known = gae(rewards, values, mask, 0.9, 0.95)
    garbage = torch.full((len(mask), 3), torch.nan).double()
    longer = torch.cat([mask, torch.zeros(len(mask), 3, dtype=torch.bool)], 1)
    filled = (x.masked_fill(~mask, 1e3) for x in (rewards, values))
    found = gae(*(torch.cat([x, garbage], 1) for x in filled), longer, 0.9, 0.95)
    for before, after in zip(known, found, strict=True):
        assert torch.allclose(after[:, :11], before, atol=1e-12)
        assert not after[:, 11:].any()


def test_returns_are_raw_advantages_plus_values(gae=gae):
    rewards, values, mask = _random()
    advantages, returns = gae(rewards, values, mask, 0.9, 0.95)
    assert torch.equal(returns, advantages + values * mask)
    assert abs(advantages[mask].mean()) > 0.01, "nothing has been whitened here"


def test_rows_do_not_meet(gae=gae):
    rewards, values, mask = _random()
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    found = gae(rewards[order], values[order], mask[order], 0.9, 0.95)
    assert torch.equal(found[0], gae(rewards, values, mask, 0.9, 0.95)[0][order])


def test_group_credit_by_hand(group_centered=group_centered, leave_one_out=leave_one_out, zscore=group_zscore):
    # group 1: mean 3, sd √7; group 2: mean −1, sd √7
    assert group_centered(SCORES, 3).tolist() == [-2.0, -1.0, 3.0, -3.0, 1.0, 2.0]
    assert leave_one_out(SCORES, 3).tolist() == [-3.0, -1.5, 4.5, -4.5, 1.5, 3.0]
    expected = group_centered(SCORES, 3) / (7**0.5 + 1e-4)
    assert torch.allclose(zscore(SCORES, 3), expected, atol=1e-6)
    assert torch.allclose(group_scale(SCORES, 3), torch.full((6,), 7**0.5 + 1e-4), atol=1e-6)


def test_leave_one_out_is_centred_credit_times_k_over_k_minus_1(leave_one_out=leave_one_out):
    scores = torch.randn(30, generator=torch.Generator().manual_seed(0))
    for group_size, factor in ((2, 2.0), (3, 1.5), (6, 1.2)):
        assert torch.allclose(leave_one_out(scores, group_size), factor * group_centered(scores, group_size), atol=1e-6)


@pytest.mark.parametrize("credit", GROUP_FUNCTIONS)
def test_group_credit_sums_to_0_and_ignores_a_shift_of_a_group(credit):
    scores = torch.randn(30, generator=torch.Generator().manual_seed(1))
    found = credit(scores, 6)
    assert found.view(5, 6).sum(1).abs().max() < 1e-5
    shift = torch.arange(5.0).repeat_interleave(6) * 10
    assert torch.allclose(credit(scores + shift, 6), found, atol=1e-4)


@pytest.mark.parametrize("credit", GROUP_FUNCTIONS)
def test_group_credit_follows_a_permutation_within_and_of_groups(credit):
    scores = torch.randn(12, generator=torch.Generator().manual_seed(2))
    order = torch.tensor([[7, 6, 11, 8, 10, 9], [3, 5, 0, 1, 4, 2]]).flatten()
    assert torch.equal(credit(scores[order], 6), credit(scores, 6)[order])


def test_only_the_zscore_ignores_the_scale():
    scores = torch.randn(12, generator=torch.Generator().manual_seed(3))
    assert torch.allclose(group_zscore(50 * scores, 6), group_zscore(scores, 6), atol=1e-3)
    for credit in (group_centered, leave_one_out):
        assert torch.allclose(credit(50 * scores, 6), 50 * credit(scores, 6), atol=1e-4)


@pytest.mark.parametrize("credit", GROUP_FUNCTIONS)
@pytest.mark.parametrize("value", AWKWARD)
def test_a_constant_group_gives_exactly_zero(credit, value):
    """Six times one of these, summed in fp32 and divided by 6, is another number: a gradient from nothing."""
    assert not credit(torch.full((6,), value), 6).any()


def test_the_epsilon_keeps_near_ties_small():
    scores = torch.tensor([0.5, 0.5 + 1e-6, 0.5, 0.5])
    assert group_zscore(scores, 4).abs().max() < 0.01
    assert group_zscore(scores, 4, eps=1e-12).abs().max() > 1


def test_group_whiten_has_mean_0_and_sd_1_over_the_tokens_of_each_group():
    values, _, mask = _random(rows=6)
    found = group_whiten(100 * values + 7, mask, 3, eps=0.0)
    for group in range(2):
        rows = slice(3 * group, 3 * group + 3)
        real = found[rows][mask[rows]]
        assert real.mean().item() == pytest.approx(0.0, abs=1e-12)
        assert real.std().item() == pytest.approx(1.0, abs=1e-12)
    assert not found[~mask].any()
    assert torch.allclose(group_whiten(values, mask, 3), group_whiten(values + 5, mask, 3), atol=1e-12)


def test_group_whiten_of_one_response_length_is_the_zscore_of_the_scores():
    mask = torch.ones(6, 1, dtype=torch.bool)
    found = group_whiten(SCORES[:, None], mask, 3)
    assert torch.allclose(found[:, 0], group_zscore(SCORES, 3), atol=1e-6)


def test_group_whiten_of_two_tokens_and_of_one_by_hand():
    """Two tokens 1 and 3: ∓1 over a sd of √2. One token has no spread, and nothing is left of it."""
    found = group_whiten(
        torch.tensor([[1.0, 9.0], [3.0, 9.0]]), torch.tensor([[True, False], [True, False]]), 2, eps=0.0
    )
    assert found[:, 0].tolist() == pytest.approx([-(0.5**0.5), 0.5**0.5])
    assert group_whiten(torch.tensor([[5.0], [9.0]]), torch.tensor([[True], [False]]), 2).tolist() == [[0.0], [0.0]]


def test_group_whiten_survives_a_group_of_equal_errors():
    found = group_whiten(torch.full((4, 3), 0.3), torch.ones(4, 3, dtype=torch.bool), 2)
    assert found.abs().max() < 1e-2


@pytest.mark.parametrize("credit", [*GROUP_FUNCTIONS, group_scale])
def test_groups_that_cannot_be_are_refused(credit):
    with pytest.raises(ValueError, match="group_size is 1"):
        credit(SCORES, 1)
    with pytest.raises(ValueError, match="6 responses do not make whole groups of 4"):
        credit(SCORES, 4)


def _scan(rewards, values, mask, gamma, lam):
    """GAE as the peers write it, with the mask applied at the end alone."""
    advantages, running = torch.zeros_like(rewards), 0.0
    for t in reversed(range(rewards.shape[1])):
        following = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        running = rewards[:, t] + gamma * following - values[:, t] + gamma * lam * running
        advantages[:, t] = running
    advantages = advantages * mask
    return advantages, advantages + values * mask


def _whitened_returns(rewards, values, mask, gamma, lam):
    advantages, _ = gae(rewards, values, mask, gamma, lam)
    white = (advantages - advantages[mask].mean()) / advantages[mask].std() * mask
    return advantages, white + values * mask


def _lambda_alone_discounts(rewards, values, mask, gamma, lam):
    return gae(rewards, values, mask, 1.0, gamma * lam)


def _forward_in_time(rewards, values, mask, gamma, lam):
    flipped = gae(rewards.flip(1), values.flip(1), mask.flip(1), gamma, lam)
    return tuple(x.flip(1) for x in flipped)


@pytest.mark.parametrize(
    ("test", "wrong"),
    [
        (test_gae_by_hand, _scan),
        (test_padding_never_reaches_an_advantage, _scan),
        (test_gae_at_lambda_0_is_the_one_step_error, _scan),
        (test_returns_are_raw_advantages_plus_values, _whitened_returns),
        (test_gae_by_hand, _lambda_alone_discounts),
        (test_gae_at_lambda_1_is_the_return_minus_the_value, _forward_in_time),
    ],
)
def test_planted_gae_is_caught(test, wrong):
    with pytest.raises(AssertionError):
        test(gae=wrong)


def _interleaved(scores, group_size):
    groups = scores.view(group_size, -1)
    return (groups - groups.mean(0)).flatten()


def _population_zscore(scores, group_size):
    groups = scores.view(-1, group_size)
    spread = groups.std(1, correction=0, keepdim=True)
    return ((groups - groups.mean(1, keepdim=True)) / (spread + 1e-4)).flatten()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("group_centered", _interleaved),
        ("group_centered", lambda scores, group_size: scores - scores.mean()),
        ("leave_one_out", group_centered),
        ("zscore", _population_zscore),
    ],
)
def test_planted_group_credit_is_caught(name, wrong):
    with pytest.raises(AssertionError):
        test_group_credit_by_hand(**{name: wrong})


def test_planted_fp32_mean_is_caught():
    def centred_in_fp32(scores, group_size):
        groups = scores.view(-1, group_size)
        return (groups - groups.mean(1, keepdim=True)).flatten()

    with pytest.raises(AssertionError):
        for value in AWKWARD:
            test_a_constant_group_gives_exactly_zero(centred_in_fp32, value)
