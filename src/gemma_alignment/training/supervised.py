"""Supervised fine-tuning: cross-entropy on response tokens only, counted over the optimizer step."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from gemma_alignment.modeling.sequences import by_length, sequences
from gemma_alignment.schemas import TrainingState, UpdateRecord
from gemma_alignment.training.course import Course
from gemma_alignment.training.schedule import guarded_step
from gemma_alignment.training.seeding import shuffled

Example = tuple[list[int], list[int]]
"""Token ids of a prompt and of its response."""


def train_supervised(
    model: Any, examples: Sequence[Example], settings: Any, pad_id: int, seed: int, start: TrainingState | None = None
) -> Iterator[UpdateRecord]:
    """Train the policy adapter on ``examples``; yields the loss every ``log_every`` steps, on from ``start``.

    L = −Σ log π(y_t | x, y_<t) / (number of response tokens in the optimizer step).
    """
    parameters = model.named_parameters_of("policy")
    optimizer = model.adam("policy", settings.learning_rate)
    steps_per_epoch = max(1, len(examples) // settings.batch_size)

    def take(step: int) -> float:
        epoch, position = divmod(step, steps_per_epoch)
        rows = shuffled(len(examples), seed, "sft", epoch)[position * settings.batch_size :][: settings.batch_size]
        return _step(model, [examples[i] for i in rows], optimizer, parameters, settings, pad_id, step)

    steps = steps_per_epoch * settings.epochs
    yield from Course("policy", "sft/loss", parameters, optimizer, steps, settings).run(take, start)


def _step(
    model: Any, rows: Sequence[Example], optimizer: Any, parameters: Any, settings: Any, pad_id: int, step: int
) -> float:
    tokens = sum(len(response) for _, response in rows)
    summed = 0.0
    prompts, responses = [p for p, _ in rows], [r for _, r in rows]
    for part in by_length(prompts, responses, settings.microbatch_size):
        batch = sequences([prompts[i] for i in part], [responses[i] for i in part], pad_id)
        with model.role("policy", train=True):
            logprobs, _ = model.logprobs(batch, 1.0)
            loss = -logprobs.sum() / tokens
            loss.backward()
        summed += float(loss.detach())
    guarded_step(optimizer, parameters, summed, settings.max_grad_norm, f"SFT, step {step + 1}")
    return summed


def perplexity(model: Any, role: Any, examples: Sequence[Example], pad_id: int, size: int) -> float:
    """exp(mean negative log-probability of a response token) under a role."""
    total, tokens = 0.0, 0
    prompts, responses = [p for p, _ in examples], [r for _, r in examples]
    for part in by_length(prompts, responses, size):
        batch = sequences([prompts[i] for i in part], [responses[i] for i in part], pad_id)
        with model.role(role):
            total += float(model.logprobs(batch, 1.0)[0].sum())
        tokens += int(batch.response_mask.sum())
    return math.exp(-total / max(1, tokens))
