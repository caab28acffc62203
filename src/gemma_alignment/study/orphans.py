"""Runs whose study or machine is gone: they are waited for, and what they did not say themselves is written down."""

import time
from collections.abc import Iterable
from pathlib import Path

from gemma_alignment.fingerprints import Record, refuse_living
from gemma_alignment.liveness import is_held, is_here
from gemma_alignment.study.plan import Run
from gemma_alignment.study.processes import GRACE, TICK


def settle(folders: Iterable[Path], why: str, patience: float = GRACE) -> None:
    """Give every record of ``folders`` that says running its end, once the process is gone that wrote it.

    For storage that passes locks on between machines, as was looked at before: there a folder that nobody holds is
    written by nobody. What is said in the copy of a bucket is said here only: there the run that goes on waits for the
    lease. ``why`` is the reason that the records name, ``{host}`` the machine.

    Raises:
        UserError: for a folder that is still written after ``patience`` seconds.
    """
    running = [(folder, record) for folder in folders if (record := _running(folder)) is not None]
    deadline = time.monotonic() + patience
    for folder, record in running:
        while _is_written(folder, record) and time.monotonic() < deadline:
            time.sleep(TICK)
        if _is_written(folder, record):
            refuse_living(folder, record, overwrite=False)
        if (left := _running(folder)) is not None:  # it may have said so itself meanwhile
            left.end("failed", why.format(host=left.host)).write(folder)


def settle_study(runs: Iterable[Run], data_root: Path) -> None:
    """The same for what an earlier study of the folder left of ``runs``."""
    folders = (stage.directory(data_root) for run in runs for stage in run.stages)
    settle(folders, "its machine {host}, or the study that it was of, was lost")


def _running(folder: Path) -> Record | None:
    record = Record.read(folder)
    return record if record is not None and record.status == "running" else None


def _is_written(folder: Path, record: Record) -> bool:
    return record.is_alive(folder) if is_here(record.host, record.born) else is_held(folder)
