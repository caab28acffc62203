"""The losses of every method: split into micro-batches, under padding, and what their statistics say."""

import itertools
from dataclasses import replace

import pytest
import tabular
import torch
from tabular import configured

from gemma_alignment.objectives.advantages import group_centered
from gemma_alignment.objectives.kl import k3
from gemma_alignment.schemas import Normalizer
from gemma_alignment.training.methods import METHODS

REDUCTIONS = ("token_mean", "sequence_mean", "constant_length")


def _step(method, count=24, kl_coef=0.1, shift=0.4):
    """A policy that has moved since it sampled, and a step that it sampled before."""
    chance = torch.Generator().manual_seed(5)
    tables = tabular.Tables()
    tables.policy += torch.randn(tables.policy.shape, generator=chance)
    tables.critic += torch.randn(tables.critic.shape, generator=chance)
    found = tabular.experience(tables, method, count, chance)
    tables.policy += shift * torch.randn(tables.policy.shape, generator=chance)
    tables.critic += torch.randn(tables.critic.shape, generator=chance)
    return tables, tabular.minibatch(method, found, kl_coef)


def _gradients(tables, method, parts, counts):
    """Of policy and critic tables, and the statistics, summed over the parts of one step."""
    leaves = tabular.Tables(tables.policy.clone().requires_grad_(), tables.critic.clone().requires_grad_())
    stats = {}
    for micro in parts:
        normalizer = counts(micro) if callable(counts) else counts
        for loss, found in tabular.losses(leaves, method, micro, normalizer):
            loss.backward()
            stats = {**stats, **{key: stats.get(key, 0.0) + value.item() for key, value in found.items()}}
    return leaves.policy.grad, leaves.critic.grad, stats


@pytest.mark.parametrize(("name", "reduction"), list(itertools.product(METHODS, REDUCTIONS)))
@pytest.mark.parametrize("size", [1, 5])
def test_gradients_do_not_depend_on_the_micro_batch(name, reduction, size):
    """1 × 24 against 24 × 1 and 5 + 5 + 5 + 5 + 4, sorted by length and cut: 1e-6, statistics included."""
    method = configured(name, reduction=reduction)
    tables, step = _step(method)
    counts = Normalizer.of(step, tabular.LONGEST)
    whole = _gradients(tables, method, [step], counts)
    parts = _gradients(tables, method, step.split(size), counts)
    assert (whole[0] - parts[0]).abs().max() < 1e-6
    assert whole[0].abs().max() > 1e-3
    if method.needs_critic:
        assert (whole[1] - parts[1]).abs().max() < 1e-6
        assert whole[1].abs().max() > 1e-3
    assert parts[2] == pytest.approx(whole[2], abs=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_counting_each_micro_batch_alone_gives_another_gradient(name):
    """The planted bug that the test above is for: means of micro-batch means."""
    method = configured(name, reduction="token_mean")
    tables, step = _step(method)
    whole = _gradients(tables, method, [step], Normalizer.of(step, tabular.LONGEST))
    parts = list(step.split(5))
    planted = _gradients(tables, method, parts, lambda m: Normalizer.of(m, tabular.LONGEST))
    assert (whole[0] - planted[0] / len(parts)).abs().max() > 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_padding_reaches_neither_loss_nor_gradient(name):
    """Not-a-number and infinite log-probabilities at the padding, in every tensor that has some."""
    method = configured(name, kl_placement="loss")
    tables, step = _step(method)
    counts, mask = Normalizer.of(step, tabular.LONGEST), step.response_mask
    prompts = step.prompt_tokens[:, 0]
    clean = tables.logprobs(prompts, step.response_tokens).requires_grad_()
    dirty = clean.detach().masked_fill(~mask, torch.inf).requires_grad_()
    spoilt = replace(
        step,
        old_logprobs=step.old_logprobs.masked_fill(~mask, -torch.inf),
        ref_logprobs=step.ref_logprobs.masked_fill(~mask, torch.nan),
    )
    expected, found = method.policy_loss(clean, step, counts), method.policy_loss(dirty, spoilt, counts)
    assert (~mask).any()
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    torch.autograd.backward([found[0], expected[0]])
    assert torch.equal(dirty.grad, clean.grad)
    if method.needs_critic:
        values = step.values.masked_fill(~mask, torch.nan).requires_grad_()
        loss, _ = method.value_loss(values, replace(step, values=values.detach()), counts)
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(values.grad).all()


@pytest.mark.parametrize("name", METHODS)
def test_before_the_first_step_the_ratio_is_1_and_nothing_is_clipped(name):
    method = configured(name)
    _, step = _step(method)
    _, stats = method.policy_loss(step.old_logprobs, step, Normalizer.of(step, tabular.LONGEST))
    assert {key: value.item() for key, value in stats.items()} == pytest.approx(
        {"approx_kl": 0.0, "clip_fraction": 0.0, "ratio_mean": 1.0}, abs=1e-6
    )


def test_statistics_by_hand():
    """Four real tokens with ratios 1.5, 1.5, .5, 1 and advantages +, −, −, +: the first and third are stopped."""
    method = configured("grpo", kl_placement="none")
    _, step = _step(method)
    ratios = torch.tensor([[1.5, 1.5, 9.0], [0.5, 1.0, 9.0]])
    small = replace(
        step,
        response_mask=torch.tensor([[True, True, False], [True, True, False]]),
        old_logprobs=torch.zeros(2, 3),
        ref_logprobs=torch.zeros(2, 3),
        advantages=torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, 1.0]]),
        response_tokens=torch.zeros(2, 3, dtype=torch.long),
        prompt_tokens=step.prompt_tokens[:2],
        prompt_mask=step.prompt_mask[:2],
    )
    logprobs = ratios.log().requires_grad_()
    loss, stats = method.policy_loss(logprobs, small, Normalizer(4, 2, 3))
    loss.backward()
    assert stats["ratio_mean"].item() == pytest.approx(4.5 / 4)
    assert stats["clip_fraction"].item() == 0.5
    # mean of ρ − 1 − log ρ
    expected = (2 * (0.5 - torch.tensor(1.5).log()) + (-0.5 - torch.tensor(0.5).log())).item() / 4
    assert stats["approx_kl"].item() == pytest.approx(expected, abs=1e-6)
    assert (logprobs.grad[:, :2] == 0).tolist() == [[True, False], [True, False]], "what clip_fraction counts"
    assert not any(value.requires_grad for value in stats.values())


@pytest.mark.parametrize("name", METHODS)
def test_a_wider_upper_clip_reaches_the_loss_of_every_method(name):
    """Ratios 1.5 and .5 with advantages + and −: an ε_high of .6 lets the first one learn on, the second is stopped."""
    _, step = _step(configured(name), count=12)
    rows = step.select(torch.arange(2))
    small = replace(
        rows,
        response_mask=torch.ones(2, 1, dtype=torch.bool),
        advantages=torch.tensor([[1.0], [-1.0]]),
        **{key: torch.zeros(2, 1) for key in ("old_logprobs", "ref_logprobs")},
        values=None,
        returns=None,
        response_tokens=torch.zeros(2, 1, dtype=torch.long),
    )
    stopped = {}
    for high in (None, 0.6):
        method = configured(name, clip_epsilon_high=high, kl_placement="none")
        logprobs = torch.tensor([[1.5], [0.5]]).log().requires_grad_()
        loss, stats = method.policy_loss(logprobs, small, Normalizer(2, 2, 1))
        loss.backward()
        stopped[high] = ((logprobs.grad == 0).flatten().tolist(), stats["clip_fraction"].item())
    assert stopped == {None: ([True, True], 1.0), 0.6: ([False, True], 0.5)}


def test_k3_enters_the_loss_with_the_minibatchs_coefficient():
    _, step = _step(configured("grpo"), kl_coef=0.3)
    counts = Normalizer.of(step, tabular.LONGEST)
    with_kl, without = (
        configured("grpo", kl_placement=p, reduction="token_mean").policy_loss(step.old_logprobs, step, counts)[0]
        for p in ("loss", "none")
    )
    penalty = 0.3 * k3(step.old_logprobs, step.ref_logprobs)[step.response_mask].mean()
    assert (with_kl - without).item() == pytest.approx(penalty.item(), abs=1e-6)


def test_dr_grpo_is_proportional_to_grpo_at_equal_lengths():
    step = _step(configured("grpo"))[1]
    step = step.select(step.response_mask.all(1).nonzero()[:, 0])
    counts = Normalizer.of(step, 2 * tabular.LONGEST)
    logprobs = step.old_logprobs - 0.1
    grpo, dr_grpo = (configured(n).policy_loss(logprobs, step, counts)[0] for n in ("grpo", "dr_grpo"))
    assert len(step) > 2
    assert dr_grpo.item() == pytest.approx(grpo.item() / 2, abs=1e-6), "longest allowed is twice their length"


def test_sequence_mean_favours_short_responses_and_constant_length_does_not():
    """Credit +1 for every response: the gradient that one token gets, short response against long."""
    _, step = _step(configured("grpo"))
    step = replace(step, advantages=step.response_mask.float(), kl_coef=0.0)
    lengths = step.response_mask.sum(1)
    pulls = {}
    for name in ("grpo", "dr_grpo"):
        logprobs = step.old_logprobs.clone().requires_grad_()
        configured(name).policy_loss(logprobs, step, Normalizer.of(step, 4))[0].backward()
        first = -logprobs.grad[:, 0]
        pulls[name] = first[lengths == 1].mean() / first[lengths == 4].mean()
    assert pulls["grpo"].item() == pytest.approx(4.0, abs=1e-4)
    assert pulls["dr_grpo"].item() == pytest.approx(1.0, abs=1e-4)


def test_a_constant_group_gives_exactly_no_gradient():
    method = configured("grpo", kl_placement="none")
    _, step = _step(method)
    tied = group_centered(torch.full((24,), -1.152360200881958), 6)
    step = replace(step, advantages=tied[:, None] * step.response_mask)
    logprobs = step.old_logprobs.clone().requires_grad_()
    method.policy_loss(logprobs, step, Normalizer.of(step, 4))[0].backward()
    assert not logprobs.grad.any()


def test_the_value_loss_is_the_coefficient_times_the_reported_error():
    method = configured("ppo", value_coef=0.25, reduction="sequence_mean")
    tables, step = _step(method)
    values = tables.values(step.prompt_tokens[:, 0], step.response_tokens)
    loss, stats = method.value_loss(values, step, Normalizer.of(step, 4))
    assert loss.item() == pytest.approx(0.25 * stats["value_loss"].item())
    near = step.values + (values - step.values).clamp(-0.2, 0.2)
    worst = torch.maximum((values - step.returns) ** 2, (near - step.returns) ** 2)
    expected = 0.5 * worst[step.response_mask].mean()
    assert stats["value_loss"].item() == pytest.approx(expected.item(), abs=1e-6), "a token mean, always"


@pytest.mark.parametrize("name", METHODS)
def test_the_policy_loss_leaves_the_critic_alone(name):
    method = configured(name)
    tables, step = _step(method)
    leaves = tabular.Tables(tables.policy.requires_grad_(), tables.critic.requires_grad_())
    policy, *value = (loss for loss, _ in tabular.losses(leaves, method, step, Normalizer.of(step, 4)))
    assert torch.autograd.grad(policy, leaves.critic, allow_unused=True, retain_graph=True) == (None,)
    for loss in value:
        assert torch.autograd.grad(loss, leaves.policy, allow_unused=True) == (None,)
