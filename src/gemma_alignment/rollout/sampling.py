"""Prompts to responses: one prefill per prompt, its cache repeated for the K samples, ended rows leave.

Prompts are prefilled a few at a time where the MLP is wide: many at once would be the largest thing in memory.

Several processes share the prompts, whole groups each, and every one gets all responses.

Each token is drawn by inverting the cumulative distribution at one uniform number, and a row's
uniforms are drawn before decoding starts: what a row samples does not depend on which rows are left, nor on who
decodes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gemma_alignment.modeling import ranks
from gemma_alignment.modeling.decoding import cached
from gemma_alignment.modeling.sequences import Sequences, pad
from gemma_alignment.modeling.transfers import Known, to_device

COMPACT_BELOW = 0.75  # rebuild the batch when fewer rows than this are still alive


@dataclass(frozen=True)
class Rollout:
    """Sampled responses; the ``group_size`` samples of a prompt are consecutive rows."""

    sequences: Sequences
    logprobs: Tensor | None
    """(B, T) of the sampled tokens under the model that sampled, at the temperature; 0 at padding. None: not known."""
    ended: Tensor
    """(B,) False where the response was cut off."""
    decoded_tokens: int
    """Forward passes of one position that decoding took here, prompts included once."""


def draw(logits: Tensor, uniform: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Tokens (B,) from logits (B, V), the inverse of the cumulative distribution at ``uniform`` (B,); their log p.

    Temperature 0 takes the largest logit; its log-probability is that of temperature 1.
    """
    logits = logits.float()
    probabilities = torch.softmax(logits if temperature in (0, 1) else logits / temperature, -1)
    if temperature == 0:
        tokens = logits.argmax(-1)
    else:
        cumulative = probabilities.cumsum(-1)
        threshold = uniform.to(logits.device, torch.float32) * cumulative[:, -1]
        tokens = torch.searchsorted(cumulative, threshold[:, None], right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return tokens, probabilities.gather(1, tokens[:, None])[:, 0].log()


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
    engine: str = "transformers",
) -> Rollout:
    """Sample ``group_size`` responses for each prompt.

    Args:
        model: a causal language model in eval mode.
        prompts: token ids, each with its BOS and chat markup.
        generator: the only source of chance, on the CPU.
        batch_size: responses decoded at a time; it does not change what is sampled, rounding aside.
        engine: ``continuous_batching`` samples the same, rounding aside, and does not tell log-probabilities.

    Raises:
        ValueError: without prompts.
        RuntimeError: when the model is in train mode.
        UserError: where the engine does not take the model.
    """
    if not prompts:
        raise ValueError("no prompts to sample from")
    if model.training:
        raise RuntimeError(
            "cannot sample in train mode: under gradient checkpointing the cache is dropped, and the decoder goes on "
            "from one token alone with nothing but a warning. Call eval() first, as SharedBase.decoder does"
        )
    uniforms = torch.rand((len(prompts) * group_size, max_new_tokens), generator=generator)
    if engine == "continuous_batching":
        responses, likely, decoded = _by_engine(model, prompts, uniforms, temperature, stop_ids, batch_size)
    else:
        responses, likely, decoded = _in_batches(model, prompts, uniforms, temperature, stop_ids, pad_id, batch_size)
    repeated = [prompt for prompt in prompts for _ in range(group_size)]
    ended = torch.tensor([bool(r) and r[-1] in stop_ids for r in responses])
    batch = Sequences(*pad(repeated, pad_id, left=True), *pad(responses, pad_id, left=False))
    return Rollout(batch, None if likely is None else likely[:, : batch.response_mask.shape[1]], ended, decoded)


def _by_engine(
    model: Any, prompts: Sequence[Sequence[int]], uniforms: Tensor, temperature: float, stop_ids: Sequence[int],
    batch_size: int,
) -> tuple[list[list[int]], None, int]:  # fmt: skip
    """See :func:`gemma_alignment.modeling.continuous.generate`; every position is computed once."""
    from gemma_alignment.modeling.continuous import generate

    def drawn(logits: Tensor, numbers: Tensor) -> Tensor:
        return draw(logits, numbers, temperature)[0]

    share = ranks.mine(range(len(prompts)))
    own, rows = [prompts[i] for i in share], _rows_of(share, len(uniforms) // len(prompts))
    found = generate(model, own, uniforms[rows], drawn, stop_ids, batch_size)
    responses: list[list[int]] = [[] for _ in range(len(uniforms))]
    for row, response in zip(rows, found, strict=True):
        responses[row] = response
    decoded = sum(map(len, own)) + sum(len(response) - 1 for response in found)
    return _of_all(responses, uniforms.shape[1]), None, decoded


def _rows_of(prompts: Sequence[int], group_size: int) -> list[int]:
    """The rows of the groups of some prompts."""
    return [i * group_size + k for i in prompts for k in range(group_size)]


def _in_batches(
    model: Any, prompts: Sequence[Sequence[int]], uniforms: Tensor, temperature: float, stop_ids: Sequence[int],
    pad_id: int, batch_size: int,
) -> tuple[list[list[int]], Tensor, int]:  # fmt: skip
    """Prompts of like length together, ``batch_size`` responses at a time."""
    group_size = len(uniforms) // len(prompts)
    per_batch = max(1, batch_size // group_size)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    responses: list[list[int]] = [[] for _ in range(len(uniforms))]
    likely = torch.zeros(uniforms.shape)
    decoded = 0
    share = ranks.mine(order)
    for start in range(0, len(share), per_batch):
        chosen = share[start : start + per_batch]
        rows = _rows_of(chosen, group_size)
        tokens, likely[rows], count = _decode(
            model, [prompts[i] for i in chosen], group_size, uniforms[rows], temperature, tuple(stop_ids), pad_id
        )
        decoded += count
        for row, response in zip(rows, tokens, strict=True):
            responses[row] = response
    return _of_all(responses, uniforms.shape[1]), ranks.whole(likely), decoded


def _of_all(responses: list[list[int]], width: int) -> list[list[int]]:
    """The responses of every process; those of others are empty before."""
    if ranks.count() == 1:
        return responses
    shifted = torch.zeros((len(responses), width), dtype=torch.long)  # 0: no token there
    for row, response in enumerate(responses):
        shifted[row, : len(response)] = torch.tensor(response, dtype=torch.long) + 1
    return [[token - 1 for token in row if token] for row in ranks.whole(shifted).tolist()]


@torch.inference_mode()
def _decode(
    model: Any, prompts: list[Sequence[int]], group_size: int, uniforms: Tensor, temperature: float,
    stop_ids: tuple[int, ...], pad_id: int,
) -> tuple[list[list[int]], Tensor, int]:  # fmt: skip
    """One batch: prefill, repeat the cache, then a token a step until every row has ended.

    Returns: the responses, their tokens' log-probabilities (0 after the end), and the positions computed.
    """
    device, steps = model.device, uniforms.shape[1]
    tokens, mask = pad(prompts, pad_id, left=True)
    count = int(mask.sum())
    cache = cached(model)
    logits = cache.prefill(to_device(tokens, device), to_device(mask.long(), device), group_size, steps)
    uniforms, stops = to_device(uniforms, device), to_device(torch.tensor(stop_ids), device)
    written = torch.full(uniforms.shape, -1, dtype=torch.long, device=device)
    likely = torch.zeros(uniforms.shape, device=device)
    alive = torch.arange(len(uniforms), device=device)
    done, known = torch.zeros(len(alive), dtype=torch.bool, device=device), Known.on(device)
    for step in range(steps):
        token, logprob = draw(logits, uniforms[alive, step], temperature)
        written[alive, step] = token.masked_fill(done, -1)
        likely[alive, step] = logprob.masked_fill(done, 0.0)
        done = done | torch.isin(token, stops)
        ended = known.tell(done)
        left = len(alive) if ended is None else ended.count(False)
        if step + 1 == steps or left == 0:
            break
        if ended is not None and left <= COMPACT_BELOW * len(alive):
            keep = to_device(torch.tensor([row for row, gone in enumerate(ended) if not gone]), device)
            cache.keep(keep)
            known.forget()
            alive, token, done = alive[keep], token[keep], done[keep]
        logits = cache.step(token)
        count += len(alive)
    return [[t for t in row if t >= 0] for row in written.tolist()], likely.cpu(), count
