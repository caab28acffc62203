"""Supervised fine-tuning: cross-entropy on response tokens only, counted over the optimizer step."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from gemma_alignment.modeling import ranks
from gemma_alignment.modeling.sequences import by_length, sequences
from gemma_alignment.schemas import TrainingState, UpdateRecord
from gemma_alignment.training.course import Course
from gemma_alignment.training.guards import check_measured, check_metrics, check_outputs, named
from gemma_alignment.training.schedule import guarded_step
from gemma_alignment.training.seeding import shuffled

LARGEST = 709.0
"""Mean nats per token whose exponential is still a number."""
Example = tuple[list[int], list[int]]
"""Token ids of a prompt and of its response."""


def train_supervised(
    model: Any, examples: Sequence[Example], settings: Any, pad_id: int, seed: int, start: TrainingState | None = None,
    ids: Sequence[str] = (),
) -> Iterator[UpdateRecord]:  # fmt: skip
    """Train the policy adapter on ``examples``; yields the loss every ``log_every`` steps, on from ``start``.

    ``ids`` name the examples in an error; without any they are named by their numbers.

    L = −Σ log π(y_t | x, y_<t) / (number of response tokens in the optimizer step).
    """
    parameters = model.named_parameters_of("policy")
    optimizer = model.adam("policy", settings.learning_rate)
    steps_per_epoch = max(1, len(examples) // settings.batch_size)

    def take(step: int) -> float:
        epoch, position = divmod(step, steps_per_epoch)
        size = settings.batch_size
        rows = shuffled(len(examples), seed, "sft", epoch, position * size, size)
        mine = [ids[i] if ids else str(i) for i in rows]
        return _step(model, [examples[i] for i in rows], mine, optimizer, parameters, settings, pad_id, step)

    steps = steps_per_epoch * settings.epochs
    course = Course("policy", "sft/loss", parameters, optimizer, steps, settings, model.packing)
    yield from course.run(take, start)


def _step(
    model: Any, rows: Sequence[Example], ids: Sequence[str], optimizer: Any, parameters: Any, settings: Any,
    pad_id: int, step: int,
) -> float:  # fmt: skip
    tokens = sum(len(response) for _, response in rows)
    summed = 0.0
    where = f"SFT, step {step + 1}"
    prompts, responses = [p for p, _ in rows], [r for _, r in rows]
    for part in by_length(prompts, responses, settings.microbatch_size):
        batch = sequences([prompts[i] for i in part], [responses[i] for i in part], pad_id)
        with model.role("policy", train=True):
            logprobs, _ = model.logprobs(batch, 1.0)
            check_outputs({"logprobs": logprobs}, [ids[i] for i in part], where)
            loss = -logprobs.sum() / tokens
            loss.backward()
        summed += float(loss.detach())
    everything = named(ids, range(len(ids)))
    guarded_step(optimizer, parameters, summed, settings.max_grad_norm, f"{where}, {everything}")
    return summed


def perplexity(
    model: Any, role: Any, examples: Sequence[Example], pad_id: int, size: int, where: str, ids: Sequence[str] = ()
) -> float:
    """exp(mean negative log-probability of a response token) under a role.

    ``where`` and ``ids``, those of the examples' prompts, are for the message.

    Raises:
        UserError: when a log-probability or the perplexity itself is not finite.
    """
    total, tokens = 0.0, 0
    prompts, responses = [p for p, _ in examples], [r for _, r in examples]
    for part in ranks.mine(by_length(prompts, responses, ranks.at_most(size, len(examples)))):
        batch = sequences([prompts[i] for i in part], [responses[i] for i in part], pad_id)
        with model.role(role):
            logprobs = model.logprobs(batch, 1.0)[0]
        check_measured({"logprobs of chosen responses": logprobs}, [ids[i] if ids else str(i) for i in part], where)
        total += float(logprobs.sum())
        tokens += int(batch.response_mask.sum())
    counted = ranks.total({"logprob": total, "tokens": float(tokens)})
    surprise = -counted["logprob"] / max(1, counted["tokens"])
    found = math.exp(surprise) if surprise < LARGEST else math.inf
    check_metrics({"perplexity": found}, where)
    return found
