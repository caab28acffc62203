"""Every method finds a planted optimum; none does with a planted bug. Seconds, on a table."""

import jaxtyping
import pytest
import tabular
import torch
from tabular import configured, train

from gemma_alignment.training.methods import METHODS, base, ppo

LEARNT = 3.8
"""Of 4. A uniform policy scores about 1.4; the second best response 3."""


@pytest.fixture(autouse=True)
def _unchecked():
    """Shapes are checked on the same calls in ``test_methods``; here that would be most of the time."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.learning
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("seed", [42, 123, 777])
def test_every_method_finds_the_planted_optimum(name, seed):
    found = train(configured(name), seed=seed)
    assert found["start"] < 2.0
    assert found["score"] > LEARNT


@pytest.mark.learning
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize(
    "changes",
    [
        {"normalize_advantages": "whiten"},
        {"normalize_advantages": "group_std", "group_size": 6},
        {"normalize_scores": "none"},
        {"normalize_scores": "fixed"},
        {"reduction": "token_mean"},
        {"reduction": "sequence_mean"},
        {"reduction": "constant_length"},
        {"kl_placement": "sequence_score"},
        {"kl_placement": "loss"},
        {"kl_placement": "none"},
        {"clip_epsilon_high": 0.28},
        {"update_epochs": 4},
        {"group_size": 4},
    ],
    ids=lambda changes: "-".join(map(str, changes.values())),
)
def test_every_setting_of_every_method_learns(name, changes):
    assert train(configured(name, **changes))["score"] > LEARNT


@pytest.mark.learning
@pytest.mark.parametrize("name", METHODS)
def test_scores_upside_down_are_followed_down(name):
    assert train(configured(name), sign=-1.0)["score"] < 0.3


@pytest.mark.learning
@pytest.mark.parametrize("name", METHODS)
def test_a_larger_coefficient_keeps_the_policy_nearer_to_the_reference(name):
    free, held = (train(configured(name), kl_coef=coef)["kl"] for coef in (0.01, 2.0))
    assert held < 0.1 * free


@pytest.mark.learning
def test_with_nowhere_to_put_it_the_coefficient_does_nothing():
    free, held = (train(configured("grpo", kl_placement="none"), kl_coef=coef) for coef in (0.0, 2.0))
    assert free == held


@pytest.mark.learning
@pytest.mark.parametrize("name", METHODS)
def test_the_same_seed_gives_the_same_history(name):
    assert train(configured(name), iterations=20) == train(configured(name), iterations=20)
    assert train(configured(name), iterations=20) != train(configured(name), iterations=20, seed=1)


def _upside_down(new, old, advantages, low, high):
    return advantages * (new - old).exp()


def _integer_rewards(scores, logprobs, ref_logprobs, response_mask, kl_coef):
    rewards = torch.zeros_like(response_mask, dtype=torch.long)
    rewards[torch.arange(len(scores)), response_mask.sum(1) - 1] = (0.1 * scores).long()
    return rewards.float()


@pytest.mark.learning
@pytest.mark.parametrize("name", METHODS)
def test_planted_sign_error_does_not_learn(name, monkeypatch):
    monkeypatch.setattr(base, "clipped_surrogate", _upside_down)
    assert train(configured(name))["score"] < 1.0


@pytest.mark.learning
def test_planted_integer_rewards_do_not_learn(monkeypatch):
    """A buffer made like the token ids cuts every score below 1 to 0."""
    monkeypatch.setattr(ppo, "token_rewards", _integer_rewards)
    assert train(configured("ppo"))["score"] < LEARNT


@pytest.mark.learning
def test_the_world_is_what_it_says():
    tables = tabular.Tables()
    prompts = torch.tensor([0, 1, 1])
    responses = torch.tensor([[1, 2, 3, 0], [3, 3, 0, 0], [3, 3, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0]]).bool()
    assert tabular.score(prompts, responses, mask).tolist() == [tabular.BEST] * 3
    sampled, real = tables.sample(torch.zeros(400, dtype=torch.long), torch.Generator().manual_seed(0))
    assert real[:, 0].all()
    assert ((sampled == tabular.ENDING) & real).sum(1).max() == 1, "at most one ending token, inside the mask"
    assert not sampled[~real].any()
