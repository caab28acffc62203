"""Prompts to responses: one prefill per prompt, its cache repeated for the K samples, ended rows leave.

Prompts are prefilled a few at a time where the MLP is wide: many at once would be the largest thing in memory.

Each token is drawn by inverting the cumulative distribution at one uniform number, and a row's
uniforms are drawn before decoding starts: what a row samples does not depend on which rows are left.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gemma_alignment.modeling.heads import prompts_at_a_time
from gemma_alignment.modeling.sequences import Sequences, pad
from gemma_alignment.objectives.logprobs import token_logprobs

COMPACT_BELOW = 0.75  # rebuild the batch when fewer rows than this are still alive


@dataclass(frozen=True)
class Rollout:
    """Sampled responses; the ``group_size`` samples of a prompt are consecutive rows."""

    sequences: Sequences
    logprobs: Tensor
    """(B, T) of the sampled tokens under the model that sampled, at the temperature; 0 at padding."""
    ended: Tensor
    """(B,) False where the response was cut off."""
    decoded_tokens: int
    """Forward passes of one position that decoding took, prompts included once."""


def draw(logits: Tensor, uniform: Tensor, temperature: float) -> Tensor:
    """Tokens (B,) from logits (B, V): the inverse of the cumulative distribution at ``uniform`` (B,).

    Temperature 0 takes the largest logit.
    """
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = torch.softmax(logits.float() / temperature, -1).cumsum(-1)
    threshold = uniform.to(logits.device, torch.float32) * cumulative[:, -1]
    return torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    group_size: int,
    *,
    max_new_tokens: int,
    temperature: float,
    stop_ids: Sequence[int],
    pad_id: int,
    generator: torch.Generator,
    batch_size: int,
) -> Rollout:
    """Sample ``group_size`` responses for each prompt.

    Args:
        model: a causal language model in eval mode.
        prompts: token ids, each with its BOS and chat markup.
        generator: the only source of chance, on the CPU.
        batch_size: responses decoded at a time; it does not change what is sampled, rounding aside.

    Raises:
        ValueError: without prompts.
        RuntimeError: when the model is in train mode.
    """
    if not prompts:
        raise ValueError("no prompts to sample from")
    if model.training:
        raise RuntimeError(
            "cannot sample in train mode: under gradient checkpointing the cache is dropped, and the decoder goes on "
            "from one token alone with nothing but a warning. Call eval() first, as SharedBase.decoder does"
        )
    uniforms = torch.rand((len(prompts) * group_size, max_new_tokens), generator=generator)
    per_batch = max(1, batch_size // group_size)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    responses: list[list[int]] = [[] for _ in range(len(prompts) * group_size)]
    likely = torch.zeros(uniforms.shape)
    decoded = 0
    for start in range(0, len(order), per_batch):
        chosen = order[start : start + per_batch]
        rows = [i * group_size + k for i in chosen for k in range(group_size)]
        tokens, likely[rows], count = _decode(
            model, [prompts[i] for i in chosen], group_size, uniforms[rows], temperature, tuple(stop_ids), pad_id
        )
        decoded += count
        for row, response in zip(rows, tokens, strict=True):
            responses[row] = response
    repeated = [prompt for prompt in prompts for _ in range(group_size)]
    ended = torch.tensor([bool(r) and r[-1] in stop_ids for r in responses])
    batch = Sequences(*pad(repeated, pad_id, left=True), *pad(responses, pad_id, left=False))
    return Rollout(batch, likely[:, : batch.response_mask.shape[1]], ended, decoded)


def _decode(
    model: Any, prompts: list[Sequence[int]], group_size: int, uniforms: Tensor, temperature: float,
    stop_ids: tuple[int, ...], pad_id: int,
) -> tuple[list[list[int]], Tensor, int]:  # fmt: skip
    """One batch: prefill, repeat the cache, then a token a step until every row has ended.

    Returns: the responses, their tokens' log-probabilities (0 after the end), and the positions computed.
    """
    device = model.device
    tokens, mask = pad(prompts, pad_id, left=True)
    mask = mask.long().to(device)
    cache, first = _prefill(model, tokens.to(device), mask)
    count = int(mask.sum())
    cache.batch_repeat_interleave(group_size)
    mask = mask.repeat_interleave(group_size, 0)
    logits = first.repeat_interleave(group_size, 0)
    position = mask.sum(1)
    alive = torch.arange(mask.shape[0], device=device)
    stops = torch.tensor(stop_ids, device=device)
    steps = uniforms.shape[1]
    written = torch.full(uniforms.shape, -1, dtype=torch.long, device=device)
    likely = torch.zeros(uniforms.shape, device=device)
    done = torch.zeros(len(alive), dtype=torch.bool, device=device)
    for step in range(steps):
        token = draw(logits, uniforms[alive.cpu(), step], temperature)
        written[alive[~done], step] = token[~done]
        likely[alive, step] = _logprob(logits, token, temperature).masked_fill(done, 0.0)
        done = done | torch.isin(token, stops)
        if step + 1 == steps or bool(done.all()):
            break
        if float((~done).float().mean()) <= COMPACT_BELOW:
            keep = (~done).nonzero()[:, 0]
            cache.batch_select_indices(keep)
            alive, token, position, mask, done = alive[keep], token[keep], position[keep], mask[keep], done[keep]
        mask = torch.cat([mask, mask.new_ones((len(alive), 1))], 1)
        out = model(
            input_ids=token[:, None], attention_mask=mask, position_ids=position[:, None], past_key_values=cache,
            use_cache=True,
        )  # fmt: skip
        count += len(alive)
        position = position + 1
        logits = out.logits[:, -1]
    return [[t for t in row if t >= 0] for row in written.tolist()], likely.cpu(), count


def _prefill(model: Any, tokens: Tensor, mask: Tensor) -> tuple[Any, Tensor]:
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


def _logprob(logits: Tensor, token: Tensor, temperature: float) -> Tensor:
    """(B,) of drawn tokens; greedy ones at temperature 1."""
    return token_logprobs(logits[:, None], token[:, None], temperature or 1.0)[:, 0]
