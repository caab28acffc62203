"""A layer with an adapter as one operation against PEFT's way: value and every gradient."""

from typing import Any

import pytest
import torch
from modeling.test_roles import batch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from toy import disturb, shared

from gemma_alignment.modeling import lora
from gemma_alignment.modeling.lora import adapted_layers, quicken


def adapted(bias: bool = False, dropout: float = 0.0) -> Any:
    torch.manual_seed(2)
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["0"], lora_dropout=dropout)
    model = get_peft_model(nn.Sequential(nn.Linear(7, 4, bias=bias)), config)
    model.add_adapter("other", config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_()
    (layer,) = adapted_layers(model)
    return layer


def passed(layer: Any, names: list[str]) -> list[Tensor]:
    layer.set_adapter(names)
    x = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(3)).requires_grad_()
    y = layer(x)
    y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(4)))
    own = [p for name, p in layer.named_parameters() if any(f".{one}." in name for one in names)]
    found = [y.detach(), x.grad, *(p.grad for p in own)]
    layer.zero_grad(set_to_none=True)
    return found


@pytest.mark.parametrize("names", [["default"], ["other"], ["default", "other"]])
@pytest.mark.parametrize("bias", [False, True])
def test_value_and_gradients_are_those_of_peft(names: list[str], bias: bool) -> None:
    layer = adapted(bias)
    expected = passed(layer, names)
    quicken([layer])
    found = passed(layer, names)
    assert len(found) == 2 + 2 * len(names)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("how", ["one", "two", "off", "dropout", "half"])
def test_who_goes_which_way(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    real = lora._Adapted.apply
    monkeypatch.setattr(lora._Adapted, "apply", lambda *args: calls.append(1) or real(*args))
    layer = adapted(dropout=0.5 if how == "dropout" else 0.0)
    quicken([layer])
    layer.set_adapter(["default", "other"] if how == "two" else ["default"])
    x = torch.ones(1, 4, 7)
    if how == "off":
        layer.enable_adapters(False)
        assert torch.equal(layer(x), layer.base_layer(x))
    elif how == "half":
        layer(x.bfloat16()) if layer.base_layer.bfloat16() else None
    else:
        layer(x)
    assert len(calls) == (1 if how == "one" else 0)


@pytest.mark.parametrize("how", ["adapted", "off", "bare", "mixed", "few rows"])
def test_layers_side_by_side_are_those_one_by_one(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = adapted(), adapted()
    second.lora_B["default"].weight.data.mul_(3)
    quicken([first, second])
    if how == "off":
        first.enable_adapters(False)
        second.enable_adapters(False)
    layers = [first, second] if how in ("adapted", "off", "few rows") else [first.base_layer, second.base_layer]
    if how == "mixed":
        layers[0] = first
    x = torch.randn(2 if how == "few rows" else 9, 7, generator=torch.Generator().manual_seed(3)).requires_grad_()
    upstream = torch.randn(len(x), 8, generator=torch.Generator().manual_seed(4))
    found = []
    for _ in range(2):
        y = lora.side_by_side(layers, x)
        y.backward(upstream)
        learnt = [p for layer in (first, second) for p in layer.parameters() if p.grad is not None]
        found.append([y.detach(), x.grad.clone(), *(p.grad.clone() for p in learnt)])
        for tensor in (x, *learnt):
            tensor.grad = None
        monkeypatch.setattr(lora, "side_by_side", lambda layers, x: torch.cat([layer(x) for layer in layers], 1))
        monkeypatch.setattr(lora, "_adapter", lambda *args: None)
    assert len(found[0]) >= (2 if how in ("off", "bare") else 4)
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=5e-6, rtol=5e-6)


def test_what_is_switched_on_is_what_peft_says() -> None:
    layer = adapted()
    lora.activate([layer], ["other"])
    assert layer.active_adapters == ["other"]
    with lora.without_adapters([layer]):
        assert layer.disable_adapters
        assert torch.equal(layer(torch.ones(1, 7)), layer.base_layer(torch.ones(1, 7)))
    assert not layer.disable_adapters


def test_the_layers_of_a_shared_base_go_so(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared(("policy",))
    disturb(model, "policy", 0.1)
    found = []
    for _ in range(2):
        with model.role("policy", train=True):
            logprobs = model.logprobs(batch(), 1.0)[0]
            logprobs.sum().backward()
        found.append([logprobs.detach(), *(p.grad.clone() for p in model.parameters_of("policy"))])
        for p in model.parameters_of("policy"):
            p.grad = None
        monkeypatch.setattr(lora, "_adapter", lambda *args: None)  # the second time all go PEFT's way
    largest = max(float(g.abs().max()) for g in found[1][1:])
    for one, other in zip(*found, strict=True):
        assert float((one - other).abs().max()) < 1e-5 * max(1.0, largest)
