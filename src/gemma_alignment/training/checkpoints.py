"""What a run goes on from after an interruption: taken after an iteration, put back before the next one.

Nothing else carries over: chance comes from seed and iteration (``seeding.py``), the learning rate from
the iteration. So a run that goes on is, byte for byte, the run that was never interrupted.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn

from gemma_alignment.errors import UserError
from gemma_alignment.modeling import ranks
from gemma_alignment.schemas import Mark, TrainingState, UpdateRecord

if TYPE_CHECKING:
    from gemma_alignment.training.policy_optimization import Run

logger = logging.getLogger(__name__)

Parameters = Mapping[str, Mapping[str, nn.Parameter]]
"""What is trained, by role and name."""
Optimizers = Mapping[str, torch.optim.Optimizer]
"""By role."""
Position = Mapping[str, Mark]
"""How far each line file of a run has come."""


@dataclass(frozen=True)
class Checkpoint:
    """A state, and how far the run's line files had come with it."""

    state: TrainingState
    position: Position


def copied(parameters: Parameters, optimizers: Optimizers) -> dict[str, dict[str, Tensor]]:
    """A copy, in main memory, of what is trained and of its optimizers' moments and steps."""
    tensors: dict[str, dict[str, Tensor]] = {}
    for role, own in parameters.items():
        tensors[role] = {name: _copy(parameter) for name, parameter in own.items()}
        tensors[f"{role}_optimizer"] = {
            f"{name}/{key}": _copy(value)
            for name, parameter in own.items()
            for key, value in optimizers[role].state.get(parameter, {}).items()
        }
    return tensors


def put_back(tensors: Mapping[str, Mapping[str, Tensor]], parameters: Parameters, optimizers: Optimizers) -> None:
    """Write into parameters and optimizers what ``copied`` read from them.

    Raises:
        UserError: when the tensors are those of another model.
    """
    for role, own in parameters.items():
        _put(tensors.get(role, {}), own, role)
        index = {name: i for i, name in enumerate(own)}
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors[f"{role}_optimizer"].items():
            name, _, kind = key.rpartition("/")
            moments.setdefault(index[name], {})[kind] = value
        groups = optimizers[role].state_dict()["param_groups"]
        optimizers[role].load_state_dict({"state": moments, "param_groups": groups})


def capture(iteration: int, run: "Run", optimizers: Optimizers, budget: Mapping[str, float]) -> TrainingState:
    """A copy of all that the iteration of an arm after ``iteration`` depends on."""
    tensors = copied(_trained(run, optimizers), optimizers)
    numbers = {
        "kl_controller": run.kl_controller.state_dict(),
        "score_normalizer": run.score_normalizer.state_dict(),
        "old_logprobs": run.old_logprobs.state_dict(),
        "packing": run.model.packing.state_dict(),
        "budget": {**budget, "flops": flops_of_all(run.model)},
    }
    return TrainingState(iteration, tensors, numbers)


def restore(state: TrainingState, run: "Run", optimizers: Optimizers) -> dict[str, Any]:
    """Put a state back into what ``capture`` read it from; returns the budget that it was given.

    Raises:
        UserError: when the state is that of another model.
    """
    put_back(state.tensors, _trained(run, optimizers), optimizers)
    run.kl_controller.load_state_dict(numbers_of(state, "kl_controller"))
    run.score_normalizer.load_state_dict(numbers_of(state, "score_normalizer"))
    run.old_logprobs.load_state_dict(numbers_of(state, "old_logprobs"))
    run.model.packing.load_state_dict(numbers_of(state, "packing"))
    budget: dict[str, Any] = dict(numbers_of(state, "budget"))
    run.model.count_from(budget.pop("flops"))
    return budget


def numbers_of(state: TrainingState, part: str) -> Mapping[str, Any]:
    """The numbers that a state keeps of a part.

    Raises:
        UserError: when it keeps none.
    """
    if part not in state.numbers:
        raise UserError(
            f"The checkpoint says nothing of {part}: it was written by another version. "
            "Begin anew: the same command with overwrite=true in place of resume=true."
        )
    return state.numbers[part]


def flops_of_all(model: Any) -> float:
    """What the model of every process has counted, together."""
    return ranks.total({"flops": model.forward_flops()})["flops"]


def _trained(run: "Run", optimizers: Optimizers) -> Parameters:
    return {role: run.model.named_parameters_of(role) for role in optimizers}


def with_time_of(state: TrainingState, timing: Iterable[Mapping[str, Any]]) -> TrainingState:
    """The state with the seconds of iterations that an attempt did after it, and that are done again.

    ``timing`` are the lines of ``timing.jsonl`` that the attempt left. A state without a budget stays as it is.
    """
    if "budget" not in state.numbers:
        return state
    budget = state.numbers["budget"]
    seconds = max((row.get("budget/seconds") or 0.0 for row in timing), default=0.0)
    spent = {**budget, "seconds": max(budget["seconds"], seconds)}
    return replace(state, numbers={**state.numbers, "budget": spent})


def _copy(value: Tensor | int) -> Tensor:
    """In main memory; Adam in 8 bits counts its steps in a plain number."""
    return torch.as_tensor(value).detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _put(saved: Mapping[str, Tensor], parameters: Mapping[str, nn.Parameter], role: str) -> None:
    shapes = {name: value.shape for name, value in saved.items()}
    if shapes != {name: value.shape for name, value in parameters.items()}:
        raise UserError(
            f"The checkpoint's {role} has other tensors than this model's: it was written by another version. "
            "Begin anew: the same command with overwrite=true in place of resume=true."
        )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(saved[name])


class Store(Protocol):
    """Where checkpoints are kept."""

    def begin(self) -> Checkpoint | None:
        """What training goes on from; None: it begins."""

    def save(self, checkpoint: Checkpoint, kept: int) -> None:
        """Keep it, and of those before it the last ``kept - 1``."""


class Log(Protocol):
    """Where records are kept."""

    def append(self, record: UpdateRecord) -> None:
        """Write the lines of a record."""

    def position(self) -> Position:
        """How far the lines have come."""

    def sync(self) -> None:
        """Return when the lines so far outlast a loss of power."""

    def rows(self, kind: Literal["timing"]) -> list[dict[str, Any]]:
        """The lines that an earlier attempt left."""

    def resume(self, position: Position) -> None:
        """Let the next record follow the lines before ``position``."""


class Schedule(Protocol):
    """How often a state goes to the disk, and how many of them stay."""

    @property
    def checkpoint_every(self) -> int: ...  # noqa: D102
    @property
    def checkpoints_kept(self) -> int: ...  # noqa: D102


def train_on(
    store: Store, log: Log, schedule: Schedule, train: Callable[[TrainingState | None], Iterator[UpdateRecord]]
) -> int:
    """Train from the last checkpoint on, or from the start where there is none; the number of the last record.

    ``train`` takes the state to go on from and yields records. Every record is logged, its state kept.

    Raises:
        UserError: when the log is not what the checkpoint says, or the disk takes no checkpoint.
    """
    start = None
    if (found := store.begin()) is not None:
        log.resume(found.position)
        start = with_time_of(found.state, log.rows("timing"))
    last = 0 if start is None else start.iteration
    with Keeper(store, log, schedule.checkpoint_every, schedule.checkpoints_kept) as keeper:
        for record in train(start):
            keeper.take(record)
            last = record.iteration
    return last


class Keeper:
    """Logs records, and keeps the state of the last one: on disk now and then, and when the block ends.

    It may end by an error or a signal. The iteration that is cut off may have changed weights and has left no
    record, so the last good state is that of the record before.
    """

    def __init__(self, store: Store, log: Log, every: int, kept: int) -> None:
        self._store, self._log = store, log
        self._every, self._kept = every, kept
        self._unsaved: Checkpoint | None = None

    def take(self, record: UpdateRecord) -> None:
        """Log a record and keep its state, every ``every`` iterations on disk."""
        self._log.append(record)
        if record.state is not None:
            self._unsaved = Checkpoint(record.state, self._log.position())
            if record.iteration % self._every == 0:
                self._save()

    def _save(self) -> None:
        if self._unsaved is not None:
            self._log.sync()
            self._store.save(self._unsaved, self._kept)
            self._unsaved = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._save()
        except UserError as failure:
            if error is None:
                raise
            logger.warning("The state before the error could not be saved: %s", failure)
