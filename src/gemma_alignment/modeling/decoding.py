"""A token at a time behind the prompts: through any model's own modules, or by fewer and larger products in a Gemma.

Both ways hold the cache, the mask and the positions of the rows that are still decoded; which one a model takes is
told by :func:`cached`. They differ by rounding.
"""

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention

from gemma_alignment.modeling.heads import prompts_at_a_time
from gemma_alignment.modeling.prefill import prefilled
from gemma_alignment.modeling.sharding import is_shared_out
from gemma_alignment.modeling.static import StaticCached, is_static


class Cached(Protocol):
    """Rows of a batch and what was computed of them."""

    def prefill(self, tokens: Tensor, mask: Tensor, copies: int, steps: int) -> Tensor:
        """Logits (G · copies, V) after left-padded prompts (G, P), each computed once and copied; room for steps."""

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after one more token (B,) of every row."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""


def cached(model: Any) -> Cached:
    """Captured steps on a GPU, the faster way for a Gemma that :func:`lay_side_by_side` has prepared on a CPU.

    Other models go through their own modules, and on a GPU those that have no cache of a fixed size, or of which a
    process holds a share: a step that waits for other processes cannot be captured.
    """
    if model.device.type == "cuda" and is_static(model) and not is_shared_out(model):
        return StaticCached(model)
    return GemmaCached(model) if hasattr(model, "side_by_side") else ModulesCached(model)


class ModulesCached:
    """The cache of transformers, filled by the model's own forward."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def prefill(self, tokens: Tensor, mask: Tensor, copies: int, steps: int) -> Tensor:
        """See :class:`Cached`."""
        self._cache, logits = prefilled(self._model, tokens, mask)
        self._cache.batch_repeat_interleave(copies)
        self._mask = torch.nn.functional.pad(mask.repeat_interleave(copies, 0), (0, steps), value=1)
        self._length, self._positions = tokens.shape[1], mask.sum(1).repeat_interleave(copies)
        return logits.repeat_interleave(copies, 0)

    def step(self, tokens: Tensor) -> Tensor:
        """See :class:`Cached`."""
        self._length += 1
        found = self._model(
            input_ids=tokens[:, None], attention_mask=self._mask[:, : self._length],
            position_ids=self._positions[:, None], past_key_values=self._cache, use_cache=True,
        ).logits[:, -1]  # fmt: skip
        self._positions = self._positions + 1
        return torch.as_tensor(found)

    def keep(self, rows: Tensor) -> None:
        """See :class:`Cached`."""
        self._cache.batch_select_indices(rows)
        self._mask, self._positions = self._mask[rows], self._positions[rows]


def lay_side_by_side(model: Any) -> Any:
    """Let weights of a plain fp32 Gemma that read the same states stand in one tensor; other models stay as they are.

    Queries, keys and values become one product, gate and up another. The parameters are views of the tensor: what is
    written into them is written into it, and no weight is held twice.
    """
    from transformers import GemmaForCausalLM

    plain: Any = GemmaForCausalLM
    if type(model) is not plain or model.dtype != torch.float32 or model.config.attention_bias:
        return model
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        attention.side_by_side = _joined(attention.q_proj, attention.k_proj, attention.v_proj)
        mlp.side_by_side = _joined(mlp.gate_proj, mlp.up_proj)
    model.side_by_side = True
    return model


def _joined(*layers: Any) -> Tensor:
    whole = torch.cat([layer.weight.data for layer in layers])
    for layer, part in zip(layers, whole.split([layer.weight.shape[0] for layer in layers]), strict=True):
        layer.weight.data = part
    return whole


class _Layer(NamedTuple):
    """The weights of a layer as a step reads them: norms with their 1 added, outer products transposed."""

    norm: Tensor
    mixing: Tensor
    out: Tensor
    second_norm: Tensor
    gate_up: Tensor
    down: Tensor
    act: Any

    @classmethod
    def of(cls, layer: Any) -> "_Layer":
        """Those of a layer that was laid side by side."""
        attention, mlp = layer.self_attn, layer.mlp
        return cls(
            1.0 + layer.input_layernorm.weight, attention.side_by_side, attention.o_proj.weight.T,
            1.0 + layer.post_attention_layernorm.weight, mlp.side_by_side, mlp.down_proj.weight.T, mlp.act_fn,
        )  # fmt: skip


class GemmaCached:
    """A cache of fixed size and the forward of one position, with the numbers of ``GemmaForCausalLM``."""

    def __init__(self, model: Any) -> None:
        self._model = model
        config = model.config
        self._heads, self._shared, self._width = (
            config.num_attention_heads, config.num_key_value_heads, config.head_dim,
        )  # fmt: skip
        self._scaling, self._epsilon = self._width**-0.5, config.rms_norm_eps
        self._layers = [_Layer.of(layer) for layer in model.model.layers]
        self._norm_weight = 1.0 + model.model.norm.weight

    def prefill(self, tokens: Tensor, mask: Tensor, copies: int, steps: int) -> Tensor:
        """See :class:`Cached`."""
        self._length, self._positions = tokens.shape[1], mask.sum(1).repeat_interleave(copies)
        seen = torch.nn.functional.pad(mask.bool().repeat_interleave(copies, 0), (0, steps), value=True)
        hidden = torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)
        self._bias = hidden.repeat_interleave(self._shared, 0)[:, None]
        every = torch.arange(self._length + steps, device=tokens.device)[None]
        cosine, sine = self._model.model.rotary_emb(self._norm_weight, every)
        self._cosine, self._sine = cosine[0, :, None], sine[0, :, None].clone()
        self._sine[..., : self._width // 2] *= -1  # rotate_half(x) · sin = roll(x) · (−sin, sin)
        size = prompts_at_a_time(tokens.shape[1], self._model.config.intermediate_size)
        parts = [self._prompts(*part) for part in zip(tokens.split(size), mask.split(size), strict=True)]
        self._kept = [self._room(torch.cat(kept), copies, steps) for kept in zip(*(p[1] for p in parts), strict=True)]
        return torch.cat([logits for logits, _ in parts]).repeat_interleave(copies, 0)

    def _prompts(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Logits (G, V) after left-padded prompts (G, P); of every layer (G, P, 2 kv, w) keys and values.

        The last layer computes keys and values of all positions, and the rest of the last one alone.
        """
        count, length = tokens.shape
        positions, real = (mask.cumsum(1) - 1).clamp(min=0), mask.bool()[:, None, None]
        itself = torch.eye(length, dtype=torch.bool, device=tokens.device)
        seen = real & torch.ones_like(itself).tril() | itself
        states = self._model.model.embed_tokens(tokens.flatten())
        turn = self._cosine[positions.flatten()], self._sine[positions.flatten()]
        found = []
        for layer in self._layers:
            mixed = self._mixed(layer, states, *turn).view(count, length, -1, self._width)
            query, key, value = mixed.transpose(1, 2).split([self._heads, self._shared, self._shared], 1)
            found.append(mixed[:, :, self._heads :])
            if layer is self._layers[-1]:
                states, query, seen = states.view(count, length, -1)[:, -1], query[:, :, -1:], seen[:, :, -1:]
            attended = scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=True)
            states = self._after(layer, states, attended.transpose(1, 2).flatten(2).flatten(0, 1))
        return self._logits(states), found

    def _room(self, kept: Tensor, copies: int, steps: int) -> Tensor:
        """(G, P, 2 kv, w) as (2, G · copies, kv, P + steps, w)."""
        count, length = kept.shape[:2]
        parts = kept.view(count, length, 2, self._shared, self._width).permute(2, 0, 3, 1, 4)
        return torch.nn.functional.pad(parts.repeat_interleave(copies, 1), (0, 0, 0, steps))

    def step(self, tokens: Tensor) -> Tensor:
        """See :class:`Cached`."""
        states = self._model.model.embed_tokens(tokens)
        cosine, sine = self._cosine[self._positions], self._sine[self._positions]
        for layer, kept in zip(self._layers, self._kept, strict=True):
            mixed = self._mixed(layer, states, cosine, sine)
            states = self._after(layer, states, self._attended(mixed, kept))
        self._length += 1
        self._positions = self._positions + 1
        return self._logits(states)

    def _mixed(self, layer: _Layer, states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """(N, heads + 2 kv, w) queries, keys and values of states (N, d), queries and keys turned."""
        mixed = linear(self._norm(layer.norm, states), layer.mixing).view(len(states), -1, self._width)
        turning = mixed[:, : self._heads + self._shared]
        turned = turning.roll(self._width // 2, 2)
        turning.mul_(cosine).addcmul_(turned, sine)
        return mixed

    def _attended(self, mixed: Tensor, kept: Tensor) -> Tensor:
        """(B, heads · w): what the new position takes from those before it and from itself."""
        new = mixed[:, self._heads :].view(len(mixed), 2, self._shared, self._width)
        kept[:, :, :, self._length] = new.transpose(0, 1)
        keys, values = kept[:, :, :, : self._length + 1].flatten(1, 2)
        query = mixed[:, : self._heads].reshape(len(keys), -1, self._width)
        bias = self._bias[:, :, : self._length + 1]
        scores = torch.baddbmm(bias, query, keys.transpose(1, 2), alpha=self._scaling)
        return torch.bmm(scores.softmax(-1), values).view(len(mixed), -1)

    def _after(self, layer: _Layer, states: Tensor, attended: Tensor) -> Tensor:
        """States (N, d) after attention's output and the MLP."""
        states = torch.addmm(states, attended, layer.out)
        gate, up = linear(self._norm(layer.second_norm, states), layer.gate_up).chunk(2, 1)
        return torch.addmm(states, layer.act(gate).mul_(up), layer.down)

    def _norm(self, weight: Tensor, states: Tensor) -> Tensor:
        return rms_norm(states, weight.shape, weight, self._epsilon)

    def _logits(self, states: Tensor) -> Tensor:
        return torch.as_tensor(self._model.lm_head(self._norm(self._norm_weight, states)))

    def keep(self, rows: Tensor) -> None:
        """See :class:`Cached`."""
        every = (rows[:, None] * self._shared + torch.arange(self._shared, device=rows.device)).flatten()
        self._kept = [kept[:, rows] for kept in self._kept]
        self._bias, self._positions = self._bias[every], self._positions[rows]
