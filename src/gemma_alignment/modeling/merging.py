"""A plain copy of the model with an adapter's weights added, made from the untouched base.

The base is never merged in place, and never merged into 4 bits: quantised weights are dequantised,
the adapter is added, and the sum lives in a model of its own (peft issues 2105 and 2321).
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gemma_alignment.modeling.embedding import Int8Head
from gemma_alignment.modeling.sharding import TiedHead


def base_weight(layer: Any) -> Tensor:
    """The weight of a linear layer in floating point, dequantised where it is held in 4 bits."""
    weight = layer.weight
    state = getattr(weight, "quant_state", None)
    if state is None:
        return torch.as_tensor(weight.detach())
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, state).to(state.dtype)


def empty_copy(model: Any, dtype: torch.dtype) -> Any:
    """A model of the same class and shape without quantisation and without adapters.

    It is made in ``dtype`` and not cast to it: made in fp32, a model for bf16 takes twice its memory on the way, and
    the cast rounds the frequencies of the rotary embedding, which are fp32 in every loaded model.
    """
    config = copy.deepcopy(model.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.random.fork_rng(devices=[]), torch.device(model.device), _made_in(dtype):
        plain = type(model)(config)
    plain.generation_config = copy.deepcopy(model.generation_config)
    return plain.eval().requires_grad_(False)


@contextmanager
def _made_in(dtype: torch.dtype) -> Iterator[None]:
    """New floating-point tensors have ``dtype`` inside the block."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def write_merged(source: Any, adapter: str | None, plain: Any) -> Any:
    """Copy the weights of ``source`` into ``plain``, W + (alpha / rank) · B A where it has the adapter.

    Buffers follow from the configuration and are left alone. A tied head is written once.
    """
    for name, module in plain.named_modules():
        twin = source.get_submodule(name)
        layer = getattr(twin, "base_layer", twin)
        for key, target in module.named_parameters(recurse=False):
            value = base_weight(layer) if key == "weight" and isinstance(module, nn.Linear) else getattr(layer, key)
            if key == "weight" and adapter is not None and adapter in getattr(twin, "lora_A", {}):
                value = value.float() + twin.get_delta_weight(adapter).float()
            target.copy_(value)
    return plain


def matmul_weights(part: Any) -> int:
    """Weights that multiply a token: all linear layers of a part of the model, counting 4-bit ones unpacked."""
    total = 0
    for module in part.modules():
        if isinstance(module, nn.Linear | Int8Head | TiedHead):
            total += module.in_features * module.out_features
    return total
