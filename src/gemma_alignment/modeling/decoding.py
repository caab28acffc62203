"""A token at a time behind the prompts: through any model's own modules, or by fewer and larger products in a Gemma.

Both ways hold the cache, the mask and the positions of the rows that are still decoded; which one a model takes is
told by :func:`cached`. They differ by rounding.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import linear, rms_norm

from gemma_alignment.modeling.heads import prompts_at_a_time


class Cached(Protocol):
    """Rows of a batch and what was computed of them."""

    def prefill(self, tokens: Tensor, mask: Tensor, copies: int, steps: int) -> Tensor:
        """Logits (G · copies, V) after left-padded prompts (G, P), each computed once and copied; room for steps."""

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after one more token (B,) of every row."""

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone."""


def cached(model: Any) -> Cached:
    """The faster way for a Gemma that :func:`lay_side_by_side` has prepared, the model's own modules for others."""
    return GemmaCached(model) if hasattr(model, "side_by_side") else ModulesCached(model)


def prefilled(model: Any, tokens: Tensor, mask: Tensor) -> tuple[Any, Tensor]:
    """The cache of prompts (N, P) and the logits (N, V) after each; a few prompts in a pass where the MLP is wide."""
    from transformers import DynamicCache

    config = model.config.get_text_config()
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    size = prompts_at_a_time(tokens.shape[1], wide)
    caches: list[Any] = []
    logits = []
    for ids, real in zip(tokens.split(size), mask.split(size), strict=True):
        caches.append(DynamicCache(config=model.config))
        out = model(
            input_ids=ids, attention_mask=real, position_ids=(real.cumsum(1) - 1).clamp(min=0),
            past_key_values=caches[-1], use_cache=True, logits_to_keep=1,
        )  # fmt: skip
        logits.append(out.logits[:, -1])
    whole, *others = caches
    if others:
        for number, layer in enumerate(whole.layers):
            layer.keys = torch.cat([one.layers[number].keys for one in caches])
            layer.values = torch.cat([one.layers[number].values for one in caches])
    return whole, torch.cat(logits)


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


class GemmaCached:
    """A cache of fixed size and the forward of one position, with the numbers of ``GemmaForCausalLM``."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._inner = model.model
        config = model.config
        self._heads, self._shared, self._width = (
            config.num_attention_heads, config.num_key_value_heads, config.head_dim,
        )  # fmt: skip
        self._scaling, self._epsilon = self._width**-0.5, config.rms_norm_eps
        self._norms = {n: 1.0 + n.weight for n in self._inner.modules() if type(n) is type(self._inner.norm)}

    def prefill(self, tokens: Tensor, mask: Tensor, copies: int, steps: int) -> Tensor:
        """See :class:`Cached`: the prompts go through the model's own modules."""
        cache, logits = prefilled(self._model, tokens, mask)
        self._length, self._positions = tokens.shape[1], mask.sum(1).repeat_interleave(copies)
        self._keys = [self._room(layer.keys, copies, steps) for layer in cache.layers]
        self._values = [self._room(layer.values, copies, steps) for layer in cache.layers]
        seen = torch.nn.functional.pad(mask.bool().repeat_interleave(copies, 0), (0, steps), value=True)
        hidden = torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, torch.finfo(torch.float32).min)
        self._bias = hidden.repeat_interleave(self._shared, 0)[:, None]
        every = torch.arange(self._length + steps, device=tokens.device)[None]
        cosine, sine = self._inner.rotary_emb(logits, every)
        half = self._width // 2
        self._cosine, self._sine = cosine[0, :, None], sine[0, :, None].clone()
        self._sine[..., :half] *= -1  # rotate_half(x) · sin = roll(x) · (−sin, sin)
        return logits.repeat_interleave(copies, 0)

    def _room(self, states: Tensor, copies: int, steps: int) -> Tensor:
        """(G, kv, P, w) as (G · copies · kv, P + steps, w)."""
        repeated = states.repeat_interleave(copies, 0).flatten(0, 1)
        return torch.nn.functional.pad(repeated, (0, 0, 0, steps))

    def step(self, tokens: Tensor) -> Tensor:
        """See :class:`Cached`."""
        states = self._inner.embed_tokens(tokens)
        cosine, sine = self._cosine[self._positions], self._sine[self._positions]
        for number, layer in enumerate(self._inner.layers):
            attended = self._attend(number, layer, self._norm(layer.input_layernorm, states), cosine, sine)
            states = torch.addmm(states, attended, layer.self_attn.o_proj.weight.T)
            gate, up = linear(self._norm(layer.post_attention_layernorm, states), layer.mlp.side_by_side).chunk(2, 1)
            states = torch.addmm(states, layer.mlp.act_fn(gate) * up, layer.mlp.down_proj.weight.T)
        self._length += 1
        self._positions = self._positions + 1
        return torch.as_tensor(self._model.lm_head(self._norm(self._inner.norm, states)))

    def _norm(self, norm: Any, states: Tensor) -> Tensor:
        return rms_norm(states, (states.shape[1],), self._norms[norm], self._epsilon)

    def _attend(self, number: int, layer: Any, states: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
        """(B, heads · w): what the new position takes from those before it and from itself."""
        mixed = linear(states, layer.self_attn.side_by_side).view(len(states), -1, self._width)
        turning, value = mixed[:, : self._heads + self._shared], mixed[:, self._heads + self._shared :]
        turned = turning * cosine + turning.roll(self._width // 2, 2) * sine
        keys, values = self._keys[number], self._values[number]
        keys[:, self._length] = turned[:, self._heads :].reshape(-1, self._width)
        values[:, self._length] = value.reshape(-1, self._width)
        seen = slice(0, self._length + 1)
        query = turned[:, : self._heads].reshape(len(keys), -1, self._width)
        scores = torch.baddbmm(self._bias[:, :, seen], query, keys[:, seen].transpose(1, 2), alpha=self._scaling)
        return torch.bmm(scores.softmax(-1), values[:, seen]).view(len(states), -1)

    def keep(self, rows: Tensor) -> None:
        """See :class:`Cached`."""
        every = (rows[:, None] * self._shared + torch.arange(self._shared, device=rows.device)).flatten()
        self._keys, self._values = [k[every] for k in self._keys], [v[every] for v in self._values]
        self._bias, self._positions = self._bias[every], self._positions[rows]
