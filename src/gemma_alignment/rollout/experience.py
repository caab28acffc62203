"""Prompts to experience: sample, then score with every role that does not learn. No gradient."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gemma_alignment.modeling import ranks
from gemma_alignment.modeling.protocols import Role, Text
from gemma_alignment.modeling.sequences import Sequences, once
from gemma_alignment.rollout.sampling import Rollout, sample
from gemma_alignment.schemas import Experience, order_by_prompt

_LOG = logging.getLogger(__name__)
AGREEMENT = 5e-5
"""Largest gap of one token's log-probability, in nats, at which the sampler's stand for those of a training forward.

Half of what the guard on the first ratio allows, so that a sampler is given up before it stops a run."""
MEAN_AGREEMENT = 5e-6
"""The same of the mean gap over all tokens."""


class OldLogprobs:
    """Where ``old_logprobs`` come from: the training forward, or the sampler where the two are the same.

    The first batch of a run is computed both ways. Where they agree the second forward is left out from then on, but
    for the batches in which the question is asked again: the adapter has grown since. A sampler that disagreed once is
    not used any more; it never is in bf16 or 4 bits, be it those of the model or of ``rollout.precision``. The answer
    is part of a checkpoint: a run that goes on must not begin by asking.
    """

    def __init__(self) -> None:
        self._sampler_agrees: bool | None = None

    def of(self, model: Any, found: Rollout, settings: Any, size: int, ask: bool) -> tuple[Tensor, Tensor | None]:
        """(B, T) of the sampled tokens under the policy that sampled them, 0 at padding; and the gap.

        ``ask``: whether to compare again. The gap (B,) is the largest of each response, in nats; None where
        nothing was compared, or the sampler tells none. Comparing changes nothing as long as the two agree.
        """
        exact = model.is_exact and settings.precision == "as_held"
        trusted = exact and self._sampler_agrees
        if trusted and not ask and found.logprobs is not None:
            return found.logprobs, None
        counted = model.forward_flops()
        trained = role_logprobs(model, "policy", found.sequences, settings.temperature, size)
        if found.logprobs is None:
            return trained, None
        gap = (trained - found.logprobs).abs()
        if exact and self._sampler_agrees is not False:
            mean = float(gap.sum(dtype=torch.float64)) / max(1, int(found.sequences.response_mask.sum()))
            self._sampler_agrees = float(gap.max()) <= AGREEMENT and mean <= MEAN_AGREEMENT
            if not self._sampler_agrees:
                _LOG.warning(
                    "Sampler and training forward differ by up to %.2g nats a token: from here on the policy's second "
                    "forward is made in every iteration", float(gap.max()),
                )  # fmt: skip
        if trusted and self._sampler_agrees:
            model.count_from(counted)  # a comparison is a measurement, no part of the training
            return found.logprobs, gap.amax(1)
        return trained, gap.amax(1)

    def state_dict(self) -> dict[str, bool]:
        """What a checkpoint keeps: nothing before the first batch."""
        return {} if self._sampler_agrees is None else {"sampler_agrees": self._sampler_agrees}

    def load_state_dict(self, state: Mapping[str, int | float]) -> None:
        """Go on from where ``state_dict`` was taken."""
        self._sampler_agrees = bool(state["sampler_agrees"]) if "sampler_agrees" in state else None


def rollout(
    model: Any, chat: Text, prompts: Sequence[str], group_size: int, settings: Any, generator: torch.Generator,
    role: Role = "policy",
) -> Rollout:  # fmt: skip
    """Sample responses of a role; ``settings`` are the rollout parameters."""
    with model.decoder(role, settings.weights, settings.precision) as decoder:
        result = sample(
            decoder,
            [chat.encode_prompt(p) for p in prompts],
            group_size,
            max_new_tokens=settings.max_new_tokens,
            temperature=settings.temperature,
            stop_ids=chat.stop_ids,
            pad_id=chat.pad_id,
            generator=generator,
            batch_size=settings.batch_size,
            engine=settings.engine,
        )
    model.count_decoding(result.decoded_tokens)
    return result


def in_parts(batch: Sequences, size: int, function: Callable[[Sequences], Tensor]) -> Tensor:
    """Apply ``function`` to parts whose rows share prompts, and put the rows back in order.

    The result of a part is (b,) or (b, t); shorter ones are filled with 0 up to T. Passes over one batch read the same
    parts, which are cut and packed once. Several processes share the parts, and each gets the whole.
    """
    if not len(batch.response_mask):
        raise ValueError("an empty batch has nothing to score")
    parts = once(batch, f"parts of {size}", lambda: _parts(batch, size))
    results = [(rows, function(part).float().cpu()) for rows, part in parts]
    out = torch.zeros(batch.response_mask.shape[: results[0][1].dim()])
    for rows, found in results:
        if found.dim() == 1:
            out[rows] = found
        else:
            out[rows, : found.shape[1]] = found
    return ranks.whole(out)


def _parts(batch: Sequences, size: int) -> list[tuple[Tensor, Sequences]]:
    """This process's row numbers and rows, of at most ``size`` responses whose prompts are much the same."""
    order = order_by_prompt(batch.prompt_tokens, batch.prompt_mask)
    found = []
    for rows in ranks.mine(order.split(ranks.at_most(size, len(order)))):
        prompt = int(batch.prompt_mask[rows].sum(1).max())
        response = max(1, int(batch.response_mask[rows].sum(1).max()))
        part = Sequences(
            batch.prompt_tokens[rows, -prompt:], batch.prompt_mask[rows, -prompt:],
            batch.response_tokens[rows, :response], batch.response_mask[rows, :response],
        )  # fmt: skip
        found.append((rows, part))
    return found


def score(model: Any, batch: Sequences, ended: Tensor, scale: tuple[float, float], penalty: float, size: int) -> Tensor:
    """Reward-model scores (B,) in units of the model's own normaliser, cut-off responses penalised.

    ``(output − mean) / sd − penalty · [not ended]`` with ``scale = (mean, sd)``.
    """
    mean, sd = scale
    with model.role("reward"):
        raw = in_parts(batch, size, model.scores)
    return (raw - mean) / sd - penalty * (~ended).float()


def role_logprobs(model: Any, role: Role, batch: Sequences, temperature: float, size: int) -> Tensor:
    """Log-probabilities (B, T) of the responses under a role, without gradient."""
    with model.role(role):
        return in_parts(batch, size, lambda part: model.logprobs(part, temperature)[0])


def collect(
    model: Any, chat: Text, prompts: Sequence[tuple[str, str]], group_size: int, *, settings: Any,
    scale: tuple[float, float], penalty: float, normalize: Callable[[Tensor], Tensor], with_critic: bool,
    microbatch_size: int, generator: torch.Generator, old_logprobs: OldLogprobs, ask_sampler: bool,
) -> Experience:  # fmt: skip
    """One iteration's experience from ``prompts``, pairs of (prompt_id, text); ``ask_sampler``: see ``OldLogprobs``."""
    found = rollout(model, chat, [text for _, text in prompts], group_size, settings, generator)
    batch = found.sequences
    raw = score(model, batch, found.ended, scale, penalty, microbatch_size)
    old, gap = old_logprobs.of(model, found, settings, microbatch_size, ask_sampler)
    reference = role_logprobs(model, "reference", batch, settings.temperature, microbatch_size)
    values = None
    if with_critic:
        with model.role("critic"):
            values = in_parts(batch, microbatch_size, model.values) * batch.response_mask
    return Experience(
        *batch, ended=found.ended, scores=normalize(raw), raw_scores=raw, old_logprobs=old, ref_logprobs=reference,
        values=values, group_size=group_size,
        prompt_ids=tuple(prompt_id for prompt_id, _ in prompts for _ in range(group_size)), sampler_gap=gap,
    )  # fmt: skip
