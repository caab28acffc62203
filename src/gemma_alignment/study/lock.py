"""One study at a time in one data folder."""

import fcntl
import json
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

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
    with os.fdopen(os.open(data_root / LOCK, os.O_RDWR | os.O_CREAT, 0o666), "r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(_refusal(data_root)) from error
        _write(file, data_root, token_of(data_root) or uuid.uuid4().hex)
        yield


def renew(data_root: Path) -> None:
    """Begin anew in a folder that is held: what an earlier study left in a scheduler's queue is not meant any more."""
    with (data_root / LOCK).open("r+", encoding="utf-8") as file:
        _write(file, data_root, uuid.uuid4().hex)


def _write(file: IO[str], data_root: Path, token: str) -> None:
    own = {"pid": os.getpid(), "host": socket.gethostname(), "since": now(), "command": command(), "token": token}
    own["folder"] = identity_of(data_root) or uuid.uuid4().hex
    file.write(json.dumps(own) + "\n")  # over what stood there: a machine that looks meanwhile never finds it empty
    file.truncate()
    file.flush()


def token_of(data_root: Path) -> str:
    """What the study in the folder, or the last one that began there, chose at random; empty where there is none.

    Raises:
        OSError: when the folder cannot be read.
    """
    return str(_read(data_root).get("token", ""))


def identity_of(data_root: Path) -> str:
    """What tells the folder from one of the same path on another machine of the same name, from its first study on."""
    try:
        return str(_read(data_root).get("folder", ""))
    except OSError:
        return ""


def is_locked(data_root: Path) -> bool:
    """Whether a study holds the folder, on whatever machine, as far as the storage passes locks on.

    Raises:
        OSError: when the folder cannot be read.
    """
    with (data_root / LOCK).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _read(data_root: Path) -> Mapping[str, Any]:
    try:
        return dict(json.JSONDecoder().raw_decode((data_root / LOCK).read_text(encoding="utf-8"))[0])
    except (ValueError, TypeError):
        return {}  # just opened by a study that has not yet written its name


def _refusal(data_root: Path) -> str:
    first = _read(data_root)
    try:
        who = f"`{first['command']}` (process {first['pid']} on {first['host']}, since {first['since']})"
    except KeyError:
        who = "another process"
    return (
        f"A study runs in {data_root} already: {who}. Wait for it, stop it, "
        "or give this one a folder of its own with --params data_root=FOLDER"
    )
