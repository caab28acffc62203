"""Linear layers with an adapter as one product: W x + s · B A x is (W + s · B A) x.

PEFT computes W x, B A x, a multiple of it and the sum, each a tensor of its own that the backward pass goes through
again. Here the weights are added before the product; that costs as much as the product of as many rows as the
adapter has ranks. Layers that read the same rows are one product. The numbers are PEFT's, rounding aside.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear


class _Adapted(torch.autograd.Function):
    """y = x [W₁ + s₁ · B₁ A₁; W₂ + s₂ · B₂ A₂; …]ᵀ for rows x (N, in), W (out, in) frozen, A (r, in), B (out, r).

    The sum is made anew in the backward pass, which costs less than to keep it.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, scales: Sequence[float], *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(x, *tensors)
        ctx.scales = scales
        return x @ _summed(scales, tensors).T

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        x, *tensors = ctx.saved_tensors
        weights, downs, ups = tensors[::3], tensors[1::3], tensors[2::3]
        ranks, (gradient,) = [len(a) for a in downs], upstream
        below = gradient @ _summed(ctx.scales, tensors) if ctx.needs_input_grad[0] else None
        pieces = gradient.split([len(w) for w in weights], 1)
        narrow = (x @ torch.cat(downs).T).split(ranks, 1)
        back = torch.cat([(piece @ b).mul_(s) for piece, b, s in zip(pieces, ups, ctx.scales, strict=True)], 1)
        found: list[Tensor | None] = [below, None]
        for piece, part, down, scale in zip(pieces, narrow, (back.T @ x).split(ranks), ctx.scales, strict=True):
            found += [None, down, (part.T @ piece).mul_(scale).T]  # twice as fast as piece.T @ part
        return tuple(found)


def _summed(scales: Sequence[float], tensors: Sequence[Tensor]) -> Tensor:
    weights, downs, ups = tensors[::3], tensors[1::3], tensors[2::3]
    whole = weights[0].new_empty((sum(map(len, weights)), weights[0].shape[1]))
    pieces = whole.split([len(weight) for weight in weights])
    for weight, a, b, scale, piece in zip(weights, downs, ups, scales, pieces, strict=True):
        torch.addmm(weight, b, a, alpha=scale, out=piece)
    return whole


def adapted_layers(peft: Any) -> list[Any]:
    """Every layer that holds adapters."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in peft.modules() if isinstance(module, BaseTunerLayer)]


def activate(layers: Sequence[Any], names: Sequence[str]) -> None:
    """Let these adapters be the active ones; PEFT's own way also looks through all parameters for those that learn."""
    for layer in layers:
        layer._active_adapter = list(names)


@contextmanager
def without_adapters(layers: list[Any]) -> Iterator[None]:
    """The base alone, as PEFT's own context has it; that one looks through every module, several times."""
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def quicken(layers: list[Any]) -> None:
    """Let every plain fp32 linear layer with one plain adapter be computed so; every other goes PEFT's way."""
    from peft.tuners.lora.layer import Linear

    kinds: Any = (Linear, nn.Linear)
    for layer in layers:
        if (type(layer), type(layer.base_layer)) == kinds and layer.base_layer.bias is None:
            layer.forward, layer.is_quick = partial(_forward, layer), True


def side_by_side(layers: Sequence[Any], x: Tensor) -> Tensor:
    """(N, Σ out) of linear layers that read the same rows (N, in)."""
    plain = [layer.base_layer if getattr(layer, "disable_adapters", False) else layer for layer in layers]
    if all(type(layer) is nn.Linear and layer.bias is None for layer in plain):
        return linear(x, torch.cat([layer.weight for layer in plain]))
    found = [one for layer in layers if (one := _adapter(layer, x)) is not None]
    if len(found) < len(layers):
        return torch.cat([layer(x) for layer in layers], 1)
    scales = [one[3] for one in found]
    return cast(Tensor, _Adapted.apply(x, scales, *(tensor for one in found for tensor in one[:3])))


def _forward(layer: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    rows = x.flatten(0, -2)
    found = None if args or kwargs else _adapter(layer, rows)
    if found is None:
        return cast(Tensor, type(layer).forward(layer, x, *args, **kwargs))
    *tensors, scale = found
    return cast(Tensor, _Adapted.apply(rows, [scale], *tensors).view(*x.shape[:-1], -1))


def _adapter(layer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor, float] | None:
    """W, A, B and s of a layer whose adapter is worth adding to its weight for rows x (N, in); else None."""
    if not getattr(layer, "is_quick", False) or layer.disable_adapters or layer.merged:
        return None
    weight, names = layer.base_layer.weight, [name for name in layer.active_adapters if name in layer.lora_A]
    one = len(names) == 1 and not layer.lora_variant and isinstance(layer.lora_dropout[names[0]], nn.Identity)
    if not one or not weight.dtype == x.dtype == torch.float32 or len(x) * sum(weight.shape) < weight.numel():
        return None  # of few rows the adapter's own products are less work than its sum with the weight
    name = names[0]
    return weight, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
