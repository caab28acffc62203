"""MLflow runs whose process was shot before a record named them: the next run of the same stage gives them an end."""

import logging
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_alignment.fingerprints import Record, Status
from gemma_alignment.hooks.store import SERVERS
from gemma_alignment.liveness import birth, is_held, is_here, runs

logger = logging.getLogger(__name__)

MLFLOW_STATUS: Mapping[Status, str] = {
    "running": "KILLED", "finished": "FINISHED", "partial": "FINISHED", "failed": "FAILED", "killed": "KILLED",
}  # fmt: skip
"""What MLflow calls the end of a stage; one whose process is gone and whose record says ``running`` was killed."""
FOLDER = "folder"
"""Tag of every run of a session: the folder that its stage writes to."""
PROCESS = "process"
"""Tag of every run of a session: machine, number and birth of the process that writes to it."""
HOST = "host"
"""Tag of every run of a session: the machine that it is on, or went on last, to be shown and searched by."""


def tags_of(folder: Path) -> dict[str, str]:
    """The machine of a run in ``folder``, and what tells later whether the process that opened it is still there."""
    return {FOLDER: str(folder.resolve()), PROCESS: _this_process(), HOST: socket.gethostname()}


def end_own(client: Any, experiment_id: str, status: str) -> None:
    """End what this process opened and never came to know, since a signal came while it was opened."""
    own = f"tags.{PROCESS} = '{_this_process()}' and attributes.status = 'RUNNING'"
    for run in client.search_runs([experiment_id], own):
        client.set_terminated(run.info.run_id, status)


def end_abandoned(
    client: Any, experiment_id: str, stage: str, folder: Path, previous: Record | None = None,
    continued: str | None = None,
) -> None:  # fmt: skip
    """End every run of ``stage`` in ``folder`` that says RUNNING though its process is gone.

    The one that ``previous``, the record that stands there, names gets the end that it says. The one that is
    ``continued`` is left; so are those of other machines, whose processes cannot be looked at. One from before a
    restart looks like that of another machine of the same name: it is ended where nobody holds the folder, and either
    the record there names it or the store is a file, which other machines have no part in.
    """
    is_own_store = not client.tracking_uri.startswith(SERVERS)
    running = client.search_runs([experiment_id], f"tags.stage = '{stage}' and attributes.status = 'RUNNING'")
    for run in running:
        run_id, tags = run.info.run_id, run.data.tags
        is_its_own = previous is not None and previous.mlflow_run_id == run_id
        if run_id == continued or tags.get(FOLDER) != str(folder.resolve()):
            continue
        if not _is_gone(tags.get(PROCESS, ""), folder if is_its_own or is_own_store else None):
            continue
        status = MLFLOW_STATUS[previous.status if previous is not None and is_its_own else "killed"]
        client.set_terminated(run_id, status)
        logger.info("The MLflow run %s was left by a process that is gone: it is %s now", run_id, status)


def _this_process() -> str:
    pid = os.getpid()
    return f"{socket.gethostname()} {pid} {birth(pid) or ''}".rstrip()


def _is_gone(process: str, folder: Path | None) -> bool:
    """Whether a process is over; of one that is not to be seen here ``folder`` tells, where it can be only its own."""
    host, _, rest = process.partition(" ")
    pid, _, born = rest.partition(" ")
    if is_here(host, born or None):
        return not runs(int(pid), born or None)
    return folder is not None and host == socket.gethostname() and not is_held(folder)
