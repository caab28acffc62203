"""One study at a time in one data folder."""

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import now
from gemma_alignment.hooks.provenance import command

LOCK = "study.lock"


@contextmanager
def alone(data_root: Path) -> Iterator[None]:
    """Hold the folder for as long as the block runs; the system lets go of it when the process ends, however.

    Raises:
        UserError: when another study holds it; it names that one.
    """
    data_root.mkdir(parents=True, exist_ok=True)
    with (data_root / LOCK).open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise UserError(_refusal(data_root, file.read())) from error
        file.truncate(0)
        file.write(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "since": now(), "command": command()}))
        file.flush()
        yield


def _refusal(data_root: Path, text: str) -> str:
    try:
        first = json.loads(text)
        who = f"`{first['command']}` (process {first['pid']} on {first['host']}, since {first['since']})"
    except (ValueError, KeyError, TypeError):
        who = "another process"  # it has opened the file and not yet written its name
    return (
        f"A study runs in {data_root} already: {who}. Wait for it, stop it, "
        "or give this one a folder of its own with --params data_root=FOLDER"
    )
