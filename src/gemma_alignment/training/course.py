"""The frame of pre-training, supervised and preference training: steps, learning rate, records to go on from."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gemma_alignment.modeling.protocols import Kept
from gemma_alignment.schemas import PLANNED, TrainingState, UpdateRecord
from gemma_alignment.training.checkpoints import copied, numbers_of, put_back
from gemma_alignment.training.schedule import warmup_cosine


@dataclass(frozen=True)
class Course:
    """What is trained, how long, and under which name its loss is logged."""

    role: str
    metric: str
    parameters: Mapping[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    steps: int
    settings: Any
    """With ``learning_rate``, ``warmup_share`` and ``log_every``."""
    packing: Kept | None = None
    """How the model computes states, for a model that can do so in more ways than one."""

    def run(self, step: Callable[[int], float], start: TrainingState | None) -> Iterator[UpdateRecord]:
        """Call ``step`` with every step number; yields its mean value every ``log_every`` steps and at the end.

        ``step`` makes one optimizer step and returns its loss. With ``start``, the state of an earlier
        attempt's record, the first step is the one after it.

        Raises:
            UserError: when the state is that of another model.
        """
        if start is not None:
            put_back(start.tensors, {self.role: self.parameters}, {self.role: self.optimizer})
            if self.packing is not None:
                self.packing.load_state_dict(numbers_of(start, "packing"))
        losses: list[float] = []
        for number in range(0 if start is None else start.iteration, self.steps):
            for group in self.optimizer.param_groups:
                factor = warmup_cosine(number, self.steps, self.settings.warmup_share)
                group["lr"] = self.settings.learning_rate * factor
            losses.append(step(number))
            if (number + 1) % self.settings.log_every == 0 or number + 1 == self.steps:
                loss = {self.metric: sum(losses) / len(losses)}
                yield UpdateRecord(number + 1, loss, {PLANNED: float(self.steps)}, state=self._state(number + 1))
                losses = []

    def _state(self, done: int) -> TrainingState:
        tensors = copied({self.role: self.parameters}, {self.role: self.optimizer})
        return TrainingState(done, tensors, {} if self.packing is None else {"packing": self.packing.state_dict()})
