"""What every cluster shares: how a run is handed over, and what is said of machines."""

import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import Record
from gemma_alignment.liveness import is_held
from gemma_alignment.study.attempt import Attempt
from gemma_alignment.study.machine import Outcome, Premises
from gemma_alignment.study.processes import GRACE, TICK, Child

LOST = 1
"""Exit status of a run of which the cluster knows only that it is over."""


def attempt_of(child: Child, premises: Premises, variables: Mapping[str, str]) -> Attempt:
    """What a machine of the cluster needs to do a child's run."""
    return Attempt(child.run, premises, child.log.absolute(), variables)


def perform(task: Callable[[], Outcome]) -> Outcome:
    """What a machine does with an attempt or a probe."""
    return task()


def refuse_machines(words: Iterable[str | None]) -> None:
    """Refuse a study some of whose machines could not do its runs.

    Raises:
        UserError: with what each of them lacks, if any does.
    """
    if lines := [f"\n  {word}" for word in words if word is not None]:
        raise UserError(f"The study was not started; of the machines that its runs would get:{''.join(lines)}")


def is_cut_off(attempt: Attempt) -> bool:
    """Whether the call that did an attempt was lost with its machine: its record says running, and nobody writes there.

    Folders of a cluster pass locks on, as was looked at before; in the copy of a bucket the leases say who lives.
    """
    for stage in attempt.run.stages:
        folder = stage.directory(attempt.premises.data_root)
        record = Record.read(folder)
        if record is not None and record.status == "running" and attempt.wrote(record):
            return not (is_held(folder) if attempt.premises.address is None else record.is_alive(folder))
    return False


def waited_for(poll: Callable[[], int | None]) -> int | None:
    """The exit status that ``poll`` gives within half a minute; None where the cluster does not say."""
    deadline = time.monotonic() + GRACE
    while (code := poll()) is None and time.monotonic() < deadline:
        time.sleep(TICK)
    return code


def last_line(error: BaseException) -> str:
    """What an error of another machine says last: the end of the traceback that it quotes, not where that is kept."""
    lines = str(error).partition("You can check full logs")[0].splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip(" -")), repr(error))


def missing_extra(engine: str, data_root: Path) -> UserError:
    """The error for an engine whose packages are not installed."""
    return UserError(
        f"--engine {engine} needs packages that are not installed: pip install 'gemma_alignment[{engine}]', on every "
        f"machine that sees {data_root}"
    )
