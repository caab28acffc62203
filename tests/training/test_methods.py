"""What a method refuses, what credit it assigns, and what the arms have in common."""

import inspect
import itertools
from dataclasses import fields, replace
from pathlib import Path

import pytest
import tabular
import torch
import yaml
from tabular import configured

from gemma_alignment.config import ConfigError
from gemma_alignment.objectives.advantages import gae, group_centered, group_whiten, group_zscore
from gemma_alignment.objectives.kl import k1
from gemma_alignment.objectives.masking import masked_mean, whiten
from gemma_alignment.objectives.rewards import token_rewards
from gemma_alignment.pipeline_registry import register_pipelines
from gemma_alignment.schemas import Normalizer
from gemma_alignment.stages import ARMS
from gemma_alignment.training.methods import METHODS
from gemma_alignment.training.methods.base import MethodSettings
from gemma_alignment.training.score_normalization import EMANormalizer

CRITIC_FREE = sorted(name for name, method in METHODS.items() if not method.needs_critic)
PLACEMENTS = ("token_reward", "sequence_score", "loss", "none")


def _tables(seed=0):
    """A policy and a critic that are neither uniform nor equal to the reference."""
    tables, chance = tabular.Tables(), torch.Generator().manual_seed(seed)
    tables.policy += torch.randn(tables.policy.shape, generator=chance)
    tables.critic += torch.randn(tables.critic.shape, generator=chance)
    return tables


def _experience(method, count=24, seed=0):
    return tabular.experience(_tables(seed), method, count, torch.Generator().manual_seed(seed))


def _tokens(found, per_response):
    return per_response[:, None] * found.response_mask


@pytest.mark.parametrize("name", METHODS)
def test_every_parameters_file_builds_its_method(name):
    method = configured(name)
    assert method.name == name
    assert isinstance(method, MethodSettings)


def test_every_method_is_an_arm_with_a_pipeline():
    """So that ``kedro run --pipeline=<method>`` and ``kedro study --methods`` know it."""
    assert ARMS == tuple(METHODS)
    assert set(METHODS) <= set(register_pipelines())


def test_the_two_arms_of_the_study_are_what_they_are_called():
    ppo, grpo = configured("ppo"), configured("grpo")
    assert (ppo.needs_critic, ppo.group_size, ppo.gae_lambda) == (True, 1, 0.95)
    assert (grpo.needs_critic, grpo.group_size, grpo.normalize_advantages) == (False, 6, "none")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_one_short_file(name):
    """About 60 lines, its docstrings included, and everything that it says is in it."""
    path = Path(inspect.getfile(METHODS[name]))
    assert path.name == f"{name}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 65


def test_the_arms_share_what_is_not_their_difference():
    """Equal in every arm: the clip, the passes over the data, the score normaliser."""
    shared = ("normalize_scores", "clip_epsilon", "clip_epsilon_high", "update_epochs")
    for name in shared:
        assert len({getattr(configured(method), name) for method in METHODS}) == 1, name


def test_dr_grpo_differs_from_grpo_in_the_reduction_alone():
    one, other = configured("grpo"), configured("dr_grpo")
    assert [f.name for f in fields(one) if getattr(one, f.name) != getattr(other, f.name)] == ["reduction"]
    assert other.reduction == "constant_length"


@pytest.mark.parametrize("name", METHODS)
def test_a_parameters_file_holds_every_field_and_no_other(name):
    text = (tabular.CONF / f"parameters_{name}.yml").read_text(encoding="utf-8")
    assert list(yaml.safe_load(text)[name]) == [f.name for f in fields(METHODS[name])]


@pytest.mark.parametrize("name", CRITIC_FREE)
def test_without_a_critic_token_rewards_are_refused(name):
    message = (
        rf"{name}: kl_placement token_reward needs a critic to carry rewards back through the tokens\. "
        r"Without one the same penalty is kl_placement: sequence_score\.$"
    )
    with pytest.raises(ConfigError, match=message):
        configured(name, kl_placement="token_reward")


@pytest.mark.parametrize("name", CRITIC_FREE)
def test_a_group_of_one_is_refused_with_the_reason(name):
    message = r"against itself is 0, so nothing would be learnt and nothing would say so\. Use at least 2\.$"
    with pytest.raises(ConfigError, match=message):
        configured(name, group_size=1)
    assert configured(name, group_size=2).group_size == 2


@pytest.mark.parametrize("name", CRITIC_FREE)
def test_group_credit_can_be_whitened_over_the_tokens_of_the_batch(name):
    method = configured(name, normalize_advantages="whiten")
    found = _experience(method)
    raw = configured(name, normalize_advantages="none").assign_credit(found, 0.05).advantages
    white = method.assign_credit(found, 0.05).advantages
    assert torch.equal(white, whiten(raw, found.response_mask))
    assert not torch.allclose(white, raw, atol=0.05)


def test_ppo_takes_both_ends_of_discount_and_lambda():
    for end in (0.0, 1.0):
        method = configured("ppo", gamma=end, gae_lambda=end)
        assert (method.gamma, method.gae_lambda) == (end, end)


def test_ppo_divides_by_the_sd_of_a_group_only_where_there_is_one():
    message = r"one response has no spread\. Use whiten or none, or a group_size of at least 2\.$"
    with pytest.raises(ConfigError, match=message):
        configured("ppo", normalize_advantages="group_std")
    assert configured("ppo", normalize_advantages="group_std", group_size=2).group_size == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group_size": 0}, "group_size is 0"),
        ({"clip_epsilon": 0.0}, r"clip_epsilon is 0\.0"),
        ({"clip_epsilon_high": -0.1}, r"clip_epsilon_high is -0\.1"),
        ({"update_epochs": 0}, "update_epochs is 0"),
        ({"gamma": 1.1}, r"gamma is 1\.1"),
        ({"gae_lambda": -0.1}, r"gae_lambda is -0\.1"),
        ({"value_coef": 0.0}, r"value_coef is 0\.0"),
        ({"value_clip": 0.0}, r"value_clip is 0\.0"),
        ({"kl_placement": "reward"}, "kl_placement: expected one of"),
    ],
)
def test_values_without_meaning_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        configured("ppo", **changes)


@pytest.mark.parametrize("name", METHODS)
def test_credit_has_no_gradient_and_is_zero_on_padding(name):
    method = configured(name)
    found = _experience(method)
    credit = method.assign_credit(found, 0.05)
    assert not credit.advantages.requires_grad
    assert not credit.advantages[~found.response_mask].any()
    assert (credit.returns is not None) == method.needs_critic


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("normalize", ["none", "group_std", "whiten"])
def test_padding_changes_no_credit(name, normalize):
    method = configured(name, normalize_advantages=normalize, group_size=6)
    found = _experience(method)
    credit = method.assign_credit(found, 0.05)
    longer = method.assign_credit(tabular.with_padding(found, 3), 0.05)
    assert torch.allclose(longer.advantages[:, : tabular.LONGEST], credit.advantages, atol=1e-6)
    assert not longer.advantages[:, tabular.LONGEST :].any()
    if credit.returns is not None:
        assert torch.equal(longer.returns[:, : tabular.LONGEST], credit.returns)


def test_grpo_credit_is_the_score_minus_the_groups_mean():
    found = _experience(configured("grpo"))
    for placement in ("loss", "none"):
        credit = configured("grpo", kl_placement=placement).assign_credit(found, 0.5)
        assert torch.equal(credit.advantages, _tokens(found, group_centered(found.scores, 6)))
    scaled = configured("grpo", normalize_advantages="group_std").assign_credit(found, 0.5)
    assert torch.allclose(scaled.advantages, _tokens(found, group_zscore(found.scores, 6)), atol=1e-6)


def test_rloo_credit_is_that_of_grpo_times_k_over_k_minus_1():
    found = _experience(configured("rloo"))
    for placement in ("sequence_score", "none"):
        grpo = configured("grpo", kl_placement=placement).assign_credit(found, 0.05)
        rloo = configured("rloo", kl_placement=placement).assign_credit(found, 0.05)
        assert torch.allclose(rloo.advantages, 1.2 * grpo.advantages, atol=1e-6)


def test_leave_one_out_with_the_sd_of_the_group_stays_bounded():
    """With the sd of the others alone, nine equal scores and one other would give infinity."""
    method = configured("rloo", normalize_advantages="group_std", kl_placement="none", group_size=10)
    found = replace(_experience(method, 20), scores=torch.tensor([0.0] * 9 + [1.0]).repeat(2))
    assert method.assign_credit(found, 0.0).advantages.abs().max() <= 10**0.5


def test_the_location_of_the_ema_cancels_in_the_group_and_its_scale_does_not():
    method = configured("grpo")
    found = _experience(method)

    def credit(mean, variance):
        scores = EMANormalizer(mean, variance, 0.95).normalize(found.raw_scores)
        return method.assign_credit(replace(found, scores=scores), 0.0).advantages

    assert torch.allclose(credit(0.0, 1.0), credit(3.0, 1.0), atol=1e-6)
    assert torch.allclose(credit(0.0, 1.0), 2 * credit(0.0, 4.0), atol=1e-6)


def test_ppo_credit_is_gae_on_token_rewards_then_whitened():
    method = configured("ppo")
    found = _experience(method)
    mask = found.response_mask
    rewards = token_rewards(found.scores, found.old_logprobs, found.ref_logprobs, mask, 0.05)
    advantages, returns = gae(rewards, found.values, mask, 1.0, 0.95)
    credit = method.assign_credit(found, 0.05)
    assert torch.equal(credit.returns, returns), "returns are taken before the whitening"
    assert abs(masked_mean(credit.advantages, mask)) < 1e-6
    assert torch.allclose(
        (credit.advantages * advantages)[mask].sum() ** 2,
        (credit.advantages**2)[mask].sum() * ((advantages - masked_mean(advantages, mask))[mask] ** 2).sum(),
        rtol=1e-4,
    ), "whitening is affine"
    raw = configured("ppo", normalize_advantages="none").assign_credit(found, 0.05)
    assert torch.equal(raw.advantages, advantages)


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_where_ppo_puts_the_penalty(placement):
    """At γ = λ = 1 the first return is the score, minus the whole penalty where credit carries it."""
    method = configured("ppo", kl_placement=placement, gae_lambda=1.0)
    found = _experience(method)
    divergence = (k1(found.old_logprobs, found.ref_logprobs) * found.response_mask).sum(1)
    carried = 0.05 * divergence if placement in ("token_reward", "sequence_score") else 0.0
    first = method.assign_credit(found, 0.05).returns[:, 0]
    assert torch.allclose(first, found.scores - carried, atol=1e-5)
    assert divergence.abs().max() > 0.5


def test_token_rewards_penalise_where_the_divergence_is():
    """The two placements in credit differ inside the response: later tokens do not pay for earlier ones."""
    found = _experience(configured("ppo"))
    by_token, by_response = (
        configured("ppo", kl_placement=p, gae_lambda=1.0).assign_credit(found, 0.5).returns
        for p in ("token_reward", "sequence_score")
    )
    assert torch.allclose(by_token[:, 0], by_response[:, 0], atol=1e-5)
    assert not torch.allclose(by_token, by_response, atol=0.1)


@pytest.mark.parametrize(
    ("name", "placement"),
    [
        (name, placement)
        for name, placement in itertools.product(METHODS, PLACEMENTS)
        if METHODS[name].needs_critic or placement != "token_reward"
    ],
)
def test_the_coefficient_enters_in_one_place_alone(name, placement):
    method = configured(name, kl_placement=placement, normalize_advantages="none")
    found = _experience(method)
    credits = [method.assign_credit(found, coef).advantages for coef in (0.0, 0.5)]
    assert torch.equal(*credits) == (placement in ("loss", "none"))
    step = tabular.minibatch(method, found, 0.5)
    counts = Normalizer.of(step, tabular.LONGEST)
    with_coef, without = (
        method.policy_loss(found.old_logprobs, replace(step, kl_coef=coef), counts)[0] for coef in (0.5, 0.0)
    )
    assert (with_coef > without) == (placement == "loss")


def test_ppo_without_values_says_what_is_missing():
    method = configured("ppo")
    found = replace(_experience(method), values=None)
    with pytest.raises(ValueError, match=r"^PPO assigns credit with a critic's values, and this experience has none$"):
        method.assign_credit(found, 0.0)
    step = replace(tabular.minibatch(method, _experience(method), 0.0), returns=None)
    with pytest.raises(ValueError, match=r"^the value loss needs the sampled values and their returns$"):
        method.value_loss(step.values, step, Normalizer.of(step, 4))


def test_group_std_of_ppo_whitens_group_by_group_and_leaves_the_returns():
    method = configured("ppo", normalize_advantages="group_std", group_size=6)
    found = _experience(method)
    raw = configured("ppo", normalize_advantages="none", group_size=6).assign_credit(found, 0.05)
    credit = method.assign_credit(found, 0.05)
    assert torch.equal(credit.advantages, group_whiten(raw.advantages, found.response_mask, 6))
    assert torch.equal(credit.returns, raw.returns)


def test_group_std_leaves_ppo_finite_when_a_groups_responses_are_alike():
    """Divided by the sd of tied scores, a critic's error of .5 would become an advantage of 5,000."""
    method = configured("ppo", normalize_advantages="group_std", group_size=6)
    found = _experience(method)
    alike = replace(found, scores=torch.ones(24), values=torch.full_like(found.values, 0.5))
    assert method.assign_credit(alike, 0.0).advantages.abs().max() < 10
