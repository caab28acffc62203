"""What the gradient of an optimizer step through a real model must not depend on: split, order, padding."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from test_policy_optimization import run
from torch import Tensor
from torch.nn.functional import pad
from toy import disturb

from gemma_alignment.rollout.experience import collect
from gemma_alignment.schemas import Minibatch
from gemma_alignment.training.methods import METHODS
from gemma_alignment.training.policy_optimization import Run, _step, minibatch_of
from gemma_alignment.training.seeding import generator


def sampled(name: str) -> tuple[Run, Minibatch]:
    """Eight responses of the reference, and a policy (and critic) that have moved since: no term is 0."""
    one = run(name, shared_changes={"minibatch_size": 8, "max_grad_norm": 1e9}, kl_placement="loss")
    experience = collect(
        one.model, one.chat, one.prompts, 8 // len(one.prompts), settings=one.rollout, scale=one.scale, penalty=1.0,
        normalize=one.score_normalizer.normalize, with_critic=one.method.needs_critic, microbatch_size=8,
        generator=generator(1, "rollout", 1), old_logprobs=one.old_logprobs, ask_sampler=False,
    )  # fmt: skip
    credit = one.method.assign_credit(replace(experience, group_size=one.method.group_size), 0.5)
    for role in ("policy", "critic") if one.method.needs_critic else ("policy",):
        disturb(one.model, role, 0.1)
    return one, minibatch_of(experience, credit, 0.5)


def gradient(one: Run, minibatch: Minibatch, size: int) -> dict[str, Tensor]:
    """How far each weight moves in a step of plain descent at rate 1; the weights are put back."""
    roles = ("policy", "critic") if one.method.needs_critic else ("policy",)
    weights = {f"{r} {key}": p for r in roles for key, p in one.model.named_parameters_of(r).items()}
    before = {key: p.detach().clone() for key, p in weights.items()}
    optimizers = {role: torch.optim.SGD(one.model.parameters_of(role), lr=1.0) for role in roles}
    settings = replace(one.settings, microbatch_size=size)
    _step(replace(one, settings=settings), minibatch, optimizers, 1, first=False)
    found = {key: before[key] - p.detach() for key, p in weights.items()}
    for key, p in weights.items():
        p.data.copy_(before[key])
    return found


def farthest(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    return max(float((one[key] - other[key]).abs().max()) for key in one)


def widened(micro: Minibatch, left: int, right: int) -> Minibatch:
    """More padding: prompts to the left, everything of a response to the right, with what must not matter in it."""
    moved = {}
    for key, value in vars(micro).items():
        if isinstance(value, Tensor):
            sides = (left, 0) if key.startswith("prompt_") else (0, right)
            moved[key] = pad(value, sides, value=0 if value.dtype in (torch.bool, torch.long) else 77.0)
    return replace(micro, **moved)


@pytest.mark.parametrize("name", METHODS)
def test_the_gradient_depends_on_neither_split_nor_order_nor_padding(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, minibatch = sampled(name)
    whole = gradient(one, minibatch, 8)
    roles = {key.split()[0] for key, value in whole.items() if value.abs().max() > 1e-3}
    assert roles == ({"policy", "critic"} if one.method.needs_critic else {"policy"})
    assert farthest(gradient(one, minibatch, 1), whole) < 1e-5
    assert farthest(gradient(one, minibatch, 3), whole) < 1e-5
    order = torch.tensor([5, 2, 7, 0, 1, 6, 4, 3])
    assert farthest(gradient(one, minibatch.select(order), 8), whole) < 1e-5

    def untrimmed(self: Minibatch, size: int) -> Iterator[Minibatch]:
        yield self

    monkeypatch.setattr(Minibatch, "split", untrimmed)
    one.model.packing.agrees = False  # the packed way would take the padding out again
    for left, right in ((1, 0), (5, 0), (0, 4), (3, 2)):
        assert farthest(gradient(one, widened(minibatch, left, right), 8), whole) < 1e-5
