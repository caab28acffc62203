"""Several processes in one run: the first is the run, with its files and records; the others compute with it and leave.

They come in one of two ways. ``accelerate launch`` (or ``torchrun``) starts all of them with one command and says in
``RANK`` and ``WORLD_SIZE`` who is who: those after the first do not open the project, they wait for work. Or the first
one starts the others itself, on its own machine, as many as ``GEMMA_ALIGNMENT_PROCESSES`` asks for, for each policy
that it trains or, in shares, answers with. Either way they are told by the first what to do, so all do the same.
"""

import inspect
import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import wraps
from typing import TYPE_CHECKING, Any

from gemma_alignment.errors import UserError
from gemma_alignment.pipelines import group

if TYPE_CHECKING:
    from gemma_alignment.training.checkpoints import Checkpoint

PROCESSES = "GEMMA_ALIGNMENT_PROCESSES"
"""Variable: how many processes train one policy, where nothing else started them."""


def is_another() -> bool:
    """Whether a launcher started this process beside the first one."""
    return int(os.environ.get("RANK", "0")) > 0


def is_launched() -> bool:
    """Whether a launcher started several processes."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def wanted() -> int:
    """How many processes are to train a policy.

    Raises:
        UserError: for a variable that is no number.
    """
    text = os.environ.get(PROCESSES, "1")
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{PROCESSES} is {text!r}, but must be a number of processes from 1")
    return int(text)


def processes() -> int:
    """How many train each policy, a launcher's or those that are wanted.

    Raises:
        UserError: for a variable that is no number.
    """
    return int(os.environ["WORLD_SIZE"]) if is_launched() else wanted()


def shared_out(train: Callable[..., Any]) -> Callable[..., Any]:
    """A node that trains, whose last two inputs are its log and its checkpoints, as one that several processes do.

    Raises:
        UserError: from the node, for more processes than there are GPUs, and when another process has ended.
    """

    @wraps(train)
    def node_function(*inputs: Any) -> Any:
        *work, run_log, checkpoints = inputs
        with _company(train, work) as there:
            return train(*work, run_log, _Told(checkpoints)) if there else train(*inputs)

    return node_function


def shared_out_in_shares(answer: Callable[..., Any]) -> Callable[..., Any]:
    """A node that only passes a model, as one that several processes do where each holds a share of its base.

    Raises:
        UserError: from the node, as above.
    """

    @wraps(answer)
    def node_function(*inputs: Any) -> Any:
        modeling = inspect.signature(answer).bind(*inputs).arguments["modeling"]
        with _company(answer, inputs) if modeling["sharding"] == "base" else nullcontext():
            return answer(*inputs)

    return node_function


def follow(train: Callable[..., Any], answer: Callable[..., Any]) -> int:
    """Be one of the other processes: do with the first one what it says, until it has no more; the exit status."""
    from gemma_alignment.modeling import ranks

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the first one is asked to stop; this one ends with it
    group.join()
    tasks = {answer.__name__: answer, train.__name__: lambda *work: train(*work, _Nowhere(), _Heard())}
    while (told := ranks.hear()[0]) is not None:
        with ranks.together():
            tasks[told[0]](*told[1])
    return 0


@contextmanager
def _company(function: Callable[..., Any], work: Sequence[Any]) -> Iterator[bool]:
    """The block in which other processes, if there are any, do the same work; whether there are."""
    with _others() as there:
        if not there:
            yield False
            return
        from gemma_alignment.modeling import ranks

        ranks.tell([function.__name__, [_plain(each) for each in work]])
        with ranks.together(is_left=is_launched()):
            yield True


@contextmanager
def first() -> Iterator[None]:
    """Be the first process: at the end those that a launcher started may go, though there was nothing to do.

    They go by themselves where a training of all of them has failed.
    """
    try:
        yield
    except BaseException:
        if is_launched() and not _is_together():
            _dismiss()
        raise
    if is_launched():
        _dismiss()


def _is_together() -> bool:
    from torch import distributed

    return distributed.is_initialized()


def _dismiss() -> None:
    from torch import distributed

    from gemma_alignment.modeling import ranks

    group.join()
    ranks.tell(None)
    distributed.destroy_process_group()


def _plain(value: Any) -> Any:
    """Rows that are read from a file when asked for, as a list."""
    return list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


@contextmanager
def _others() -> Iterator[bool]:
    """The other processes, for as long as the block goes on; whether there are any."""
    if is_launched():
        group.join()
        yield True
        return
    if (count := wanted()) == 1:
        yield False
        return
    from gemma_alignment.modeling import ranks

    _check_gpus(count)
    with group.started(count):
        yield True
        ranks.tell(None)


def _check_gpus(count: int) -> None:
    import torch

    if torch.cuda.is_available() and torch.cuda.device_count() < count:
        raise UserError(
            f"{count} processes of a run need a GPU each, and this machine has {torch.cuda.device_count()}: ask for "
            "fewer (--processes-per-run), or use runtime.device=cpu"
        )


class _Told:
    """The first process's checkpoints: where training begins is told to the others."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.save: Callable[..., None] = store.save

    def begin(self) -> "Checkpoint | None":
        from gemma_alignment.modeling import ranks

        found: Checkpoint | None = self._store.begin()
        if found is None:
            ranks.tell(None)
        else:
            state = found.state
            ranks.tell({"iteration": state.iteration, "numbers": state.numbers}, **state.tensors)
        return found


class _Heard:
    """Checkpoints as another process has them: it begins where the first does, and keeps none."""

    def begin(self) -> "Checkpoint | None":
        from gemma_alignment.modeling import ranks
        from gemma_alignment.schemas import TrainingState
        from gemma_alignment.training.checkpoints import Checkpoint

        told, tensors = ranks.hear()
        if told is None:
            return None
        numbers: Mapping[str, Any] = told["numbers"]
        own = {**numbers, "budget": {**numbers["budget"], "flops": 0.0}}  # counted once, by the first
        return Checkpoint(TrainingState(told["iteration"], tensors, own), {})

    def save(self, checkpoint: "Checkpoint", kept: int) -> None: ...


class _Nowhere:
    """A log that nobody reads: the first process writes what there is to say."""

    def append(self, record: Any) -> None: ...

    def position(self) -> Mapping[str, int]:
        return {}

    def sync(self) -> None: ...

    def rows(self, kind: str) -> list[dict[str, Any]]:
        return []

    def resume(self, position: Mapping[str, int]) -> None: ...
