"""The forward of a Gemma in fp32 over real positions alone: no padding and no prompt twice, but in attention.

Norms, rotation and what joins the layers are computed here, on one list of positions; every linear layer is the
model's own module, with the adapters that are active. Attention alone takes the positions in rows. The numbers are
those of ``GemmaForCausalLM``, rounding aside.
"""

from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import rms_norm, scaled_dot_product_attention

from gemma_alignment.modeling.packing import Packed, masks_for


def is_plain(model: Any) -> bool:
    """Whether a model is a ``GemmaForCausalLM`` in fp32 that keeps its activations."""
    from transformers import GemmaForCausalLM

    return type(model) is GemmaForCausalLM and model.dtype == torch.float32 and not model.training


def gemma_states(model: Any, packed: Packed, wanted: Tensor) -> tuple[Tensor, int]:
    """Final hidden states (n, d) of the ``wanted`` places (n,), and how many positions there are that differ.

    What no wanted state reads is left out of the last layer: there the others are keys and values alone.
    """
    inner = model.model
    first, real = packed.first.flatten(), packed.group.flatten() >= 0
    here = first == torch.arange(len(first), device=first.device)
    own, again = here & real, (~here).nonzero()[:, 0]
    number, places = (own.cumsum(0) - 1).clamp(min=0)[first], own.nonzero()[:, 0]
    asked, order = number[wanted].unique(return_inverse=True)
    states = inner.embed_tokens(packed.tokens.flatten()[own])
    turn = inner.rotary_emb(states, packed.positions.flatten()[own][None])
    rows = _Rows(model.config, packed, (number, places, again), turn)
    last = len(inner.layers) - 1
    for depth, layer in enumerate(inner.layers):
        attention, mlp = layer.self_attn, layer.mlp
        mixed = _normed(layer.input_layernorm, states)
        attended = rows.attend(attention.q_proj(mixed), attention.k_proj(mixed), attention.v_proj(mixed))
        if depth == last:
            attended, states = _Taken.apply(attended, asked), _Taken.apply(states, asked)
        states = states + attention.o_proj(attended)
        mixed = _normed(layer.post_attention_layernorm, states)
        states = states + mlp.down_proj(mlp.act_fn(mlp.gate_proj(mixed)) * mlp.up_proj(mixed))
    return _normed(inner.norm, states).index_select(0, order), len(places)


def _normed(norm: Any, states: Tensor) -> Tensor:
    return rms_norm(states, (states.shape[-1],), 1.0 + norm.weight, norm.eps)


class _Rows:
    """Positions laid into rows for attention, and taken out again."""

    def __init__(self, config: Any, packed: Packed, where: tuple[Tensor, Tensor, Tensor], turn: Any) -> None:
        self._where, self._shape = where, packed.group.shape
        self._mask = masks_for(config, packed, turn[0].dtype)
        self._width = config.head_dim
        self._cosine, self._sine = turn[0][0, :, None], turn[1][0, :, None].clone()
        self._sine[..., : self._width // 2] *= -1  # rotate_half(x) · sin = roll(x) · (−sin, sin)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(N, heads · w) of queries (N, heads · w), keys and values (N, kv · w)."""
        found = scaled_dot_product_attention(
            self._laid(self._turned(query)), self._laid(self._turned(key)), self._laid(value), attn_mask=self._mask,
            enable_gqa=True,
        )  # fmt: skip
        return cast(Tensor, _Taken.apply(found.transpose(1, 2).flatten(2).flatten(0, 1), self._where[1]))

    def _turned(self, states: Tensor) -> Tensor:
        heads = states.view(len(states), -1, self._width)
        return (heads * self._cosine + heads.roll(self._width // 2, 2) * self._sine).flatten(1)

    def _laid(self, states: Tensor) -> Tensor:
        """(N, n · w) as (R, n, L, w)."""
        return cast(Tensor, _Laid.apply(states, *self._where)).view(*self._shape, -1, self._width).transpose(1, 2)


class _Laid(torch.autograd.Function):
    """Rows of x by number. A gradient is copied back from the place where a row stands first, others are added."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, number: Tensor, first: Tensor, again: Tensor) -> Tensor:
        ctx.save_for_backward(number, first, again)
        return x.index_select(0, number)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        number, first, again = ctx.saved_tensors
        found = upstream[0].index_select(0, first)
        return found.index_add_(0, number[again], upstream[0][again]), None, None, None


class _Taken(torch.autograd.Function):
    """Rows of x at places that differ from each other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.size = len(x)
        return x.index_select(0, places)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        (gradient,) = upstream
        return gradient.new_zeros(ctx.size, gradient.shape[1]).index_copy_(0, places, gradient), None
