"""The score at the last real token, and the penalty at each."""

import jaxtyping
import pytest
import torch

from gemma_alignment.objectives.rewards import penalised_scores, token_rewards

SCORES = torch.tensor([0.83, -2.0, 1.0])
OLD = torch.tensor([[-1.0, -2.0, -3.0, -4.0], [-1.0, -1.0, -1.0, -1.0], [-0.5, -0.5, -0.5, -0.5]])
REF = torch.tensor([[-1.5, -1.0, -3.0, -2.0], [-2.0, -1.5, -9.0, -9.0], [-0.5, -0.5, -0.5, -7.0]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()


def test_token_rewards_by_hand(token_rewards=token_rewards):
    found = token_rewards(SCORES, OLD, REF, MASK, 0.1)
    expected = [
        [-0.05, 0.10, 0.0, 0.2 + 0.83],  # k1 = .5, −1, 0, −2
        [-0.10, -0.05 - 2.0, 0.0, 0.0],  # the score stands at the ending token, not at the last column
        [0.0, 0.0, 1.0, 0.0],
    ]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-7)


def test_token_rewards_sum_to_the_penalised_score(token_rewards=token_rewards, penalised_scores=penalised_scores):
    total = penalised_scores(SCORES, OLD, REF, MASK, 0.1)
    assert torch.allclose(total, torch.tensor([0.83 + 0.25, -2.0 - 0.15, 1.0]), atol=1e-6)
    assert torch.allclose(token_rewards(SCORES, OLD, REF, MASK, 0.1).sum(1), total, atol=1e-6)


def test_without_a_penalty_only_the_score_is_left(token_rewards=token_rewards, penalised_scores=penalised_scores):
    rewards = token_rewards(SCORES, OLD, REF, MASK, 0.0)
    assert rewards.sum(1).tolist() == SCORES.tolist()
    assert (rewards != 0).sum(1).tolist() == [1, 1, 1]
    assert penalised_scores(SCORES, OLD, REF, MASK, 0.0).tolist() == SCORES.tolist()


def test_the_penalty_is_detached(token_rewards=token_rewards, penalised_scores=penalised_scores):
    new = OLD.clone().requires_grad_()
    assert not token_rewards(SCORES, new, REF, MASK, 0.1).requires_grad
    assert not penalised_scores(SCORES, new, REF, MASK, 0.1).requires_grad


def test_padding_changes_no_reward(token_rewards=token_rewards, penalised_scores=penalised_scores):
    garbage = torch.full((3, 2), torch.nan)
    old, ref = torch.cat([OLD, garbage], 1), torch.cat([REF, garbage], 1)
    mask = torch.cat([MASK, torch.zeros(3, 2, dtype=torch.bool)], 1)
    longer = token_rewards(SCORES, old, ref, mask, 0.1)
    assert torch.equal(longer[:, :4], token_rewards(SCORES, OLD, REF, MASK, 0.1))
    assert not longer[:, 4:].any()
    assert torch.allclose(penalised_scores(SCORES, old, ref, mask, 0.1), penalised_scores(SCORES, OLD, REF, MASK, 0.1))


def test_scores_and_log_probabilities_may_differ_in_width(token_rewards=token_rewards):
    """A reward head in fp32 beside log-probabilities in float64, or in bf16: the wider one wins."""
    expected = token_rewards(SCORES.double(), OLD.double(), REF.double(), MASK, 0.1)
    assert torch.allclose(token_rewards(SCORES, OLD.double(), REF.double(), MASK, 0.1), expected, atol=1e-7)
    half = token_rewards(SCORES.bfloat16(), OLD, REF, MASK, 0.1)
    assert half.dtype == torch.float32
    assert torch.allclose(half.double(), expected, atol=0.01)


def test_integer_scores_are_caught_by_the_shape_checks():
    with pytest.raises(jaxtyping.TypeCheckError):
        token_rewards(torch.tensor([1, 2, 3]), OLD, REF, MASK, 0.1)


def test_a_response_without_a_token_is_refused():
    with pytest.raises(ValueError, match=r"rows \[0, 2\] have no response token"):
        token_rewards(SCORES, OLD, REF, MASK & torch.tensor([[False], [True], [False]]), 0.1)


def _integer_buffer(scores, old, ref, mask, kl_coef):
    rewards = torch.zeros_like(mask, dtype=torch.long)
    rewards[range(len(scores)), mask.sum(1) - 1] = scores.long()
    return rewards - kl_coef * (old - ref) * mask


def _last_column(scores, old, ref, mask, kl_coef):
    rewards = -kl_coef * (old - ref) * mask
    rewards[:, -1] += scores
    return rewards


def _one_after_the_end(scores, old, ref, mask, kl_coef):
    rewards = -kl_coef * (old - ref).masked_fill(~mask, 0)
    rewards[range(len(scores)), mask.sum(1).clamp(max=mask.shape[1] - 1)] += scores
    return rewards


def _reward_for_divergence(scores, old, ref, mask, kl_coef):
    return token_rewards(scores, ref, old, mask, kl_coef)


def _attached(scores, old, ref, mask, kl_coef):
    return token_rewards(scores, old, ref, mask, 0.0) - kl_coef * (old - ref) * mask


@pytest.mark.parametrize(
    ("test", "wrong"),
    [
        (test_token_rewards_by_hand, _integer_buffer),
        (test_without_a_penalty_only_the_score_is_left, _integer_buffer),
        (test_token_rewards_by_hand, _last_column),
        (test_padding_changes_no_reward, _last_column),
        (test_token_rewards_by_hand, _one_after_the_end),
        (test_token_rewards_by_hand, _reward_for_divergence),
        (test_token_rewards_sum_to_the_penalised_score, _reward_for_divergence),
        (test_the_penalty_is_detached, _attached),
    ],
)
def test_planted_bug_is_caught(test, wrong):
    with pytest.raises(AssertionError):
        test(token_rewards=wrong)
