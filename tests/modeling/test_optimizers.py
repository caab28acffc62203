"""Adam in 8 bits: close to Adam, smaller, and taken up again from a checkpoint to the bit."""

from dataclasses import replace

import pytest
import torch
from toy import SHAPE, SharedBase, chat, disturb, tiny_gemma
from training.test_policy_optimization import run

from gemma_alignment.errors import UserError
from gemma_alignment.modeling.optimizers import adam
from gemma_alignment.parameters.training import LoraParameters
from gemma_alignment.training.policy_optimization import optimize

pytest.importorskip("bitsandbytes")
CPU = torch.device("cpu")


def model():
    base = tiny_gemma(SHAPE, len(chat().tokenizer), 0).eval().requires_grad_(False)
    found = SharedBase(base, LoraParameters(128, 128, ("gate_proj", "down_proj")), 0, optimizer="paged_adam_8bit")
    for role in ("policy", "reward"):
        found.add(role)
    disturb(found, "reward")
    return found


def test_moments_take_a_quarter_and_the_step_is_that_of_adam() -> None:
    generator = torch.Generator().manual_seed(0)
    start, gradient = torch.randn(2, 64, 128, generator=generator)
    found = {}
    for kind in ("adam", "paged_adam_8bit"):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = adam([parameter], 1e-2, 1e-8, kind, CPU)
        for _ in range(5):
            parameter.grad = gradient.clone()
            optimizer.step()
        tensors = [v for v in optimizer.state[parameter].values() if isinstance(v, torch.Tensor)]
        moments = sum(v.numel() * v.element_size() for v in tensors if v.numel() >= parameter.numel())
        found[kind] = parameter.detach() - start, moments
    assert found["paged_adam_8bit"][1] * 4 == found["adam"][1]
    steps = [found[kind][0] for kind in ("adam", "paged_adam_8bit")]
    assert float((steps[0] - steps[1]).abs().mean()) < 0.1 * float(steps[0].abs().mean())


def test_a_run_in_8_bits_goes_on_from_its_checkpoint() -> None:
    whole = list(optimize(replace(run("grpo"), model=model())))
    quantised = [key for key, value in whole[1].state.tensors["policy_optimizer"].items() if value.dtype == torch.uint8]
    assert quantised
    rest = list(optimize(replace(run("grpo"), model=model()), whole[1].state))
    assert [record.metrics for record in rest] == [record.metrics for record in whole[2:]]


def test_8_bits_without_the_library_are_refused(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes.optim.adam", None)
    with pytest.raises(UserError, match=r"(?s)'paged_adam_8bit', but bitsandbytes cannot.*modeling\.optimizer=adam"):
        adam([torch.nn.Parameter(torch.zeros(2))], 1e-2, 1e-8, "paged_adam_8bit", CPU)
