"""Bradley-Terry training of the reward model, and its held-out accuracy."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from gemma_alignment.modeling.sequences import by_length, sequences
from gemma_alignment.objectives.losses import bradley_terry
from gemma_alignment.schemas import TrainingState, UpdateRecord
from gemma_alignment.training.course import Course
from gemma_alignment.training.guards import check_measured, check_outputs, named
from gemma_alignment.training.schedule import guarded_step
from gemma_alignment.training.seeding import shuffled

Pair = tuple[list[int], list[int], list[int]]
"""Token ids of a prompt, its chosen and its rejected response."""
AT_A_TIME = 512
"""Held-out pairs whose tokens are held at once."""


def pair_scores(model: Any, pairs: Sequence[Pair], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (N,) of the chosen and of the rejected responses, in one pass, in the active role."""
    prompts = [p for p, _, _ in pairs] * 2
    responses = [c for _, c, _ in pairs] + [r for _, _, r in pairs]
    scores = model.scores(sequences(prompts, responses, pad_id))
    return scores[: len(pairs)], scores[len(pairs) :]


def train_reward_model(
    model: Any, pairs: Sequence[Pair], settings: Any, pad_id: int, seed: int, start: TrainingState | None = None,
    ids: Sequence[str] = (),
) -> Iterator[UpdateRecord]:  # fmt: skip
    """Train the reward adapter and head; yields the loss every ``log_every`` steps, on from ``start``.

    ``ids`` name the pairs in an error; without any they are named by their numbers.
    """
    parameters = model.named_parameters_of("reward")
    optimizer = model.adam("reward", settings.learning_rate)
    steps_per_epoch = max(1, len(pairs) // settings.batch_size)

    def take(step: int) -> float:
        epoch, position = divmod(step, steps_per_epoch)
        size, where = settings.batch_size, f"Reward model, step {step + 1}"
        drawn = shuffled(len(pairs), seed, "reward_model", epoch, position * size, size)
        mine = [ids[i] if ids else str(i) for i in drawn]
        loss = _accumulate(model, [pairs[i] for i in drawn], mine, settings.microbatch_size, pad_id, where)
        everything = named(mine, range(len(mine)))
        guarded_step(optimizer, parameters, loss, settings.max_grad_norm, f"{where}, {everything}")
        return loss

    steps = steps_per_epoch * settings.epochs
    course = Course("reward", "reward_model/loss", parameters, optimizer, steps, settings, model.packing)
    yield from course.run(take, start)


def _accumulate(model: Any, pairs: Sequence[Pair], ids: Sequence[str], size: int, pad_id: int, where: str) -> float:
    summed = 0.0
    for part in by_length([p + c for p, c, _ in pairs], [r for _, _, r in pairs], size):
        with model.role("reward", train=True):
            better, worse = pair_scores(model, [pairs[i] for i in part], pad_id)
            scores = {"scores of chosen responses": better, "scores of rejected responses": worse}
            check_outputs(scores, [ids[i] for i in part], where)
            loss = bradley_terry(better, worse).sum() / len(pairs)
            loss.backward()
        summed += float(loss.detach())
    return summed


def margins(model: Any, pairs: Sequence[Pair], pad_id: int, size: int, ids: Sequence[str] = ()) -> list[float]:
    """Score of the chosen minus score of the rejected response, pair by pair, in order; ``ids`` name them in an error.

    Pairs are read ``AT_A_TIME``, those of like length in one pass.

    Raises:
        UserError: when a margin is not finite: it would count as a pair that is judged wrongly.
    """
    found: list[float] = []
    for start in range(0, len(pairs), AT_A_TIME):
        some = list(pairs[start : start + AT_A_TIME])
        here = [0.0] * len(some)
        for part in by_length([p + c for p, c, _ in some], [r for _, _, r in some], size):
            with model.role("reward"):
                better, worse = pair_scores(model, [some[i] for i in part], pad_id)
            for i, value in zip(part, (better - worse).tolist(), strict=True):
                here[i] = value
        found += here
    check_measured({"margin": torch.tensor(found)}, ids, "Reward model, held-out pairs")
    return found
