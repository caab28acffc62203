"""The forward of a Gemma in fp32 over real positions alone: no padding and no prompt twice, but in attention.

Norms, rotation and what joins the layers are computed here, on one list of positions; every linear layer is the
model's own module, with the adapters that are active. Attention alone takes the positions in rows. The numbers are
those of ``GemmaForCausalLM``, rounding aside.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import gelu, scaled_dot_product_attention

from gemma_alignment.modeling.lora import side_by_side
from gemma_alignment.modeling.packing import Packed, masks_for
from gemma_alignment.modeling.sharding import is_shared_out


def is_plain(model: Any) -> bool:
    """Whether a model is a ``GemmaForCausalLM`` in fp32 that keeps its activations, and whole in this process."""
    from transformers import GemmaForCausalLM

    is_kind = type(model) is GemmaForCausalLM and model.dtype == torch.float32
    return is_kind and not model.training and not is_shared_out(model)


def gemma_states(model: Any, packed: Packed, wanted: Tensor) -> tuple[Tensor, int]:
    """Final hidden states (n, d) of the ``wanted`` places (n,), and how many positions there are that differ.

    What no wanted state reads is left out: the last token of a response, and in the last layer all others but their
    keys and values.
    """
    inner = model.model
    rows, own = _rows_of(model, packed, wanted)
    asked, order = rows.whole.number[wanted].unique(return_inverse=True)
    states = inner.embed_tokens(packed.tokens.flatten()[own])
    last = len(inner.layers) - 1
    for depth, layer in enumerate(inner.layers):
        attention, mlp = layer.self_attn, layer.mlp
        mixed = _normed(layer.input_layernorm, states)
        if depth < last:
            attended = rows.attend(side_by_side([attention.q_proj, attention.k_proj, attention.v_proj], mixed))
        else:
            kept = side_by_side([attention.k_proj, attention.v_proj], mixed)
            attended = rows.attend_last(attention.q_proj(_Taken.apply(mixed, asked)), kept, asked)
            states = _Taken.apply(states, asked)
        states = states + attention.o_proj(attended)
        mixed = _normed(layer.post_attention_layernorm, states)
        states = states + mlp.down_proj(_gated(mlp.act_fn, side_by_side([mlp.gate_proj, mlp.up_proj], mixed)))
    return _normed(inner.norm, states).index_select(0, order), int(own.sum())


def _normed(norm: Any, states: Tensor) -> Tensor:
    return cast(Tensor, _Normed.apply(states, 1.0 + norm.weight, norm.eps))


class _Normed(torch.autograd.Function):
    """y = w · x / √(mean x² + ε) for rows x (N, d), w frozen; in few passes, where torch's takes many."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        square = torch.linalg.vector_norm(x, dim=1, keepdim=True).square_()
        inverse = square.div_(x.shape[1]).add_(epsilon).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        """∂x = g / r − x · (g · x) / (d r³) with g = w · ∂y and r the root."""
        x, weight, inverse = ctx.saved_tensors
        gradient = upstream[0] * weight
        along = torch.linalg.vecdot(gradient, x)[:, None].mul_(inverse.pow(3)).div_(x.shape[1])
        return gradient.mul_(inverse).addcmul_(x, along, value=-1), None, None


def _gated(act: Any, rows: Tensor) -> Tensor:
    """act(gate) · up for gate and up side by side (N, 2 m)."""
    from transformers.activations import GELUTanh

    if type(act) is GELUTanh and torch.is_grad_enabled() and rows.requires_grad:
        return cast(Tensor, _Gated.apply(rows))
    gate, up = rows.chunk(2, 1)
    active = act(gate)
    return cast(Tensor, active * up if torch.is_grad_enabled() else active.mul_(up))


class _Gated(torch.autograd.Function):
    """GELU(gate) · up, in its tanh form; both gradients are written side by side, where torch joins them afterwards."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        gate, up = rows.chunk(2, 1)
        active = gelu(gate, approximate="tanh")
        ctx.save_for_backward(rows, active)
        return active * up

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        rows, active = ctx.saved_tensors
        gate, up = rows.chunk(2, 1)
        found = torch.empty_like(rows)
        below, other = found.chunk(2, 1)
        torch.mul(upstream[0], active, out=other)
        torch.ops.aten.gelu_backward.grad_input(upstream[0] * up, gate, approximate="tanh", grad_input=below)
        return found


@dataclass(frozen=True)
class _Places:
    """N positions in R rows of L places."""

    shape: tuple[int, int]
    """R and L."""
    number: Tensor
    """(R · L,) the position at each place; any where there is none."""
    places: Tensor
    """(N,) the place where each position stands first."""
    again: Tensor
    """The places where a position stands again."""
    turn: tuple[Tensor, Tensor]
    """Cosine and signed sine (R · L, 1, w) of the angle that heads are turned by at each place."""

    def laid(self, states: Tensor, heads: Sequence[int], turned: int) -> list[Tensor]:
        """(N, Σ heads · w) as one (R, heads, L, w) each, the first ``turned`` heads turned."""
        width = self.turn[0].shape[-1]
        found = cast(Tensor, _Laid.apply(states, self.turn, turned * width, self.number, self.places, self.again))
        return [
            part.view(*self.shape, -1, width).transpose(1, 2) for part in found.split([n * width for n in heads], 1)
        ]

    def taken(self, rows: Tensor) -> Tensor:
        """(R, heads, L, w) as (N, heads · w)."""
        return cast(Tensor, _Taken.apply(rows.transpose(1, 2).flatten(2).flatten(0, 1), self.places))


@dataclass(frozen=True)
class _Rows:
    """Positions laid into rows for attention, and taken out again."""

    whole: _Places
    mask: Tensor
    """(R, 1, L, L) 0, or the least number."""
    heads: tuple[int, int]
    """Of queries, and of keys and values each."""

    def attend(self, states: Tensor) -> Tensor:
        """(N, heads · w) of queries, keys and values side by side (N, (heads + 2 kv) · w)."""
        query, key, value = self.whole.laid(states, (*self.heads, self.heads[1]), sum(self.heads))
        return self.whole.taken(scaled_dot_product_attention(query, key, value, attn_mask=self.mask, enable_gqa=True))

    def attend_last(self, query: Tensor, kept: Tensor, asked: Tensor) -> Tensor:
        """(n, heads · w) at the positions ``asked`` (n,), in order, of their queries and all keys and values."""
        (rows, length), places = self.whole.shape, self.whole.places[asked]
        row = places // length
        slot = torch.arange(len(row), device=row.device) - torch.searchsorted(row, row)
        width = int(slot.max()) + 1
        own = row * width + slot
        number, stands = (own.new_zeros(rows * width) for _ in range(2))
        number[own], stands[own] = torch.arange(len(row), device=row.device), places
        turn = self.whole.turn[0][stands], self.whole.turn[1][stands]
        few = _Places((rows, width), number, own, own[:0], turn)
        (laid,), (key, value) = few.laid(query, self.heads[:1], self.heads[0]), self.whole.laid(
            kept, (self.heads[1], self.heads[1]), self.heads[1]
        )
        mask = self.mask.flatten(0, 2)[stands].view(rows, 1, width, length)
        return few.taken(scaled_dot_product_attention(laid, key, value, attn_mask=mask, enable_gqa=True))


def _rows_of(model: Any, packed: Packed, wanted: Tensor) -> tuple[_Rows, Tensor]:
    """How the positions that differ stand in rows, and at which of all places (R · L,) each of them stands first."""
    config, first = model.config, packed.first.flatten()
    read = ((packed.group >= 0) & ~packed.ends).flatten()
    read[wanted] = True
    own = torch.zeros_like(read)
    own[first[read]] = True
    again = own[first] & (first != torch.arange(len(first), device=first.device))
    cosine, sine = model.model.rotary_emb(model.model.norm.weight, packed.positions.flatten()[None])
    sine = sine.clone()
    sine[..., : config.head_dim // 2] *= -1  # rotate_half(x) · sin = roll(x) · (−sin, sin)
    number, places = (own.cumsum(0) - 1).clamp(min=0)[first], own.nonzero()[:, 0]
    rows, length = packed.group.shape
    whole = _Places((rows, length), number, places, again.nonzero()[:, 0], (cosine[0, :, None], sine[0, :, None]))
    heads = config.num_attention_heads, config.num_key_value_heads
    return _Rows(whole, masks_for(config, packed, torch.float32), heads), own


class _Laid(torch.autograd.Function):
    """Rows of x by number, the heads of the first ``turning`` columns turned by their position's angles.

    A gradient is copied back from the place where a row stands first, others are added.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, turn: tuple[Tensor, Tensor], turning: int, number: Tensor, places: Tensor, again: Tensor
    ) -> Tensor:
        cosine, sine = turn
        ctx.save_for_backward(number, places, again, cosine, sine)
        ctx.turning = turning
        found = x.index_select(0, number)
        heads = _heads(found, turning, cosine)
        turned = heads.roll(heads.shape[2] // 2, 2).mul_(sine)
        heads.mul_(cosine).add_(turned)
        return found

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        number, places, again, cosine, sine = ctx.saved_tensors
        (gradient,) = upstream
        found = gradient.index_select(0, places)
        found.index_add_(0, number[again], gradient[again])
        cosine, sine = cosine[places], sine[places]
        heads = _heads(found, ctx.turning, cosine)
        turned = (heads * sine).roll(heads.shape[2] // 2, 2)
        heads.mul_(cosine).add_(turned)
        return found, None, None, None, None, None


def _heads(rows: Tensor, turning: int, cosine: Tensor) -> Tensor:
    """The heads (N, n, w) in the first ``turning`` columns of rows, as a view."""
    return rows[:, :turning].unflatten(1, (-1, cosine.shape[-1]))


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
