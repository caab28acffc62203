"""Plain language-model training of a small base on dialogues, every token of them."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from gemma_alignment.modeling.heads import LOGITS, chunked_logprobs, positions_at_a_time
from gemma_alignment.modeling.sequences import pad
from gemma_alignment.schemas import TrainingState, UpdateRecord
from gemma_alignment.training.course import Course
from gemma_alignment.training.schedule import guarded_step

Batch = Callable[[int], Sequence[Sequence[int]]]
"""Step number to the token ids of its dialogues."""


def pretrain(
    model: Any, batch: Batch, settings: Any, pad_id: int, start: TrainingState | None = None
) -> Iterator[UpdateRecord]:
    """Train all weights in place, on from ``start``: L = −Σ log p(token | before) / tokens; yields the loss."""
    parameters = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(parameters.values(), lr=settings.learning_rate, betas=(0.9, 0.95), weight_decay=0.01)

    def take(step: int) -> float:
        loss = _loss(model, *pad(batch(step), pad_id, left=False))
        loss.backward()
        guarded_step(optimizer, parameters, loss.detach(), 1.0, f"Pre-training, step {step + 1}")
        return float(loss.detach())

    model.train()
    yield from Course("base", "pretraining/loss", parameters, optimizer, settings.steps, settings).run(take, start)
    model.eval()


def _loss(model: Any, tokens: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy; where the logits of all positions would be too many, a few positions' at a time."""
    vocabulary = model.config.get_text_config().vocab_size
    asked = {"input_ids": tokens[:, :-1], "attention_mask": mask[:, :-1].long(), "use_cache": False}
    real, targets = mask[:, 1:], tokens[:, 1:][mask[:, 1:]]
    if real.numel() * vocabulary <= LOGITS:
        return torch.nn.functional.cross_entropy(model(**asked).logits[real], targets)
    states = model.base_model(**asked).last_hidden_state[real]
    head = model.get_output_embeddings()
    return -chunked_logprobs(states, targets, head, 1.0, positions_at_a_time(vocabulary), frozen=False)[0].mean()
