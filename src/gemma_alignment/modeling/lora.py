"""A linear layer with an adapter as one operation: three products a pass, and nothing else over all activations.

PEFT computes W x, B A x, a multiple of it and the sum, each a tensor of its own that the backward pass goes through
again. Here the second product is added into the first where it lies. The numbers are PEFT's, rounding aside.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn


class _Adapted(torch.autograd.Function):
    """W x + s · B A x for rows x (N, in), W (out, in) frozen, A (r, in), B (out, r)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        narrow = x @ a.T
        ctx.save_for_backward(x, weight, a, b, narrow)
        ctx.scale = scale
        return (x @ weight.T).addmm_(narrow, b.T, alpha=scale)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, None, Tensor, Tensor, None]:
        x, weight, a, b, narrow = ctx.saved_tensors
        (gradient,) = upstream
        back = (gradient @ b).mul_(ctx.scale)
        below = (gradient @ weight).addmm_(back, a) if ctx.needs_input_grad[0] else None
        return below, None, back.T @ x, (gradient.T @ narrow).mul_(ctx.scale), None


def adapted_layers(peft: Any) -> list[Any]:
    """Every layer that holds adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in peft.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def without_adapters(layers: list[Any]) -> Iterator[None]:
    """The base alone, as PEFT's own context has it; that one looks through every module, several times."""
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def quicken(layers: list[Any]) -> None:
    """Let every plain fp32 linear layer with one plain adapter be computed so; every other goes PEFT's way."""
    from peft.tuners.lora.layer import Linear

    kinds: Any = (Linear, nn.Linear)
    for layer in layers:
        if (type(layer), type(layer.base_layer)) == kinds and layer.base_layer.bias is None:
            layer.forward = partial(_forward, layer)


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    base = layer.base_layer.weight
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    plain = not (layer.disable_adapters or layer.merged or args or kwargs or layer.lora_variant)
    if not (plain and len(names) == 1 and base.dtype == x.dtype == torch.float32 and _undropped(layer, names[0])):
        return cast(Tensor, type(layer).forward(layer, x, *args, **kwargs))
    a, b = layer.lora_A[names[0]].weight, layer.lora_B[names[0]].weight
    rows = _Adapted.apply(x.flatten(0, -2), base, a, b, layer.scaling[names[0]])
    return cast(Tensor, rows.view(*x.shape[:-1], -1))


def _undropped(layer: Any, name: str) -> bool:
    return isinstance(layer.lora_dropout[name], nn.Identity)
