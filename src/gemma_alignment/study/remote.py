"""What every cluster shares: how a run is handed over, and how it is told from an earlier one in the same folder."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import Record
from gemma_alignment.study.attempt import Attempt, versions
from gemma_alignment.study.engine import Site
from gemma_alignment.study.lock import LOCK
from gemma_alignment.study.processes import GRACE, TICK, Child

LOST = 1
"""Exit status of a run of which the cluster knows only that it is over."""


def attempt_of(child: Child, site: Site, variables: Mapping[str, str]) -> Attempt:
    """What a machine of the cluster needs to do a child's run."""
    before = tuple(Record.read(stage.directory(site.data_root)) for stage in child.run.stages)
    lock = site.mark or (site.data_root / LOCK).read_text(encoding="utf-8")
    return Attempt(
        child.run, site.project, site.data_root, child.log.absolute(), variables, before, lock, versions(), site.address
    )


def is_of(attempt: Attempt, record: Record) -> bool:
    """Whether a stage's record was written since the attempt was handed over."""
    return record not in attempt.before


def waited_for(poll: Callable[[], int | None]) -> int | None:
    """The exit status that ``poll`` gives within half a minute; None where the cluster does not say."""
    deadline = time.monotonic() + GRACE
    while (code := poll()) is None and time.monotonic() < deadline:
        time.sleep(TICK)
    return code


def missing_extra(engine: str, data_root: Path) -> UserError:
    """The error for an engine whose packages are not installed."""
    return UserError(
        f"--engine {engine} needs packages that are not installed: pip install 'gemma_alignment[{engine}]', on every "
        f"machine that sees {data_root}"
    )
