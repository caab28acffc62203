"""A file of JSON lines that several processes may append to and that survives being killed."""

import fcntl
import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from gemma_alignment.judging.locks import take

logger = logging.getLogger(__name__)

TOLD_AFTER_S = 1.0
"""Seconds after which a wait for the file is said: most are over in a moment."""


class AppendLog:
    """Append-only JSON lines under an exclusive file lock, each flushed to disk before the lock is let go.

    The file is the only truth: what this process appended comes back through
    :meth:`Exclusive.fresh` like what others did. A line that a kill tore is closed off by the next
    append and skipped by every reader.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._offset = 0
        self._threads = threading.Lock()

    @contextmanager
    def locked(self, wait: Callable[[float], None] | None = None) -> Iterator["Exclusive"]:
        """Hold the file for one read-decide-append; keep it short, other processes wait.

        Args:
            wait: sleeps for so many seconds, or raises to end the waiting for others; for a file that somebody
                holds while a service answers. None: the operating system waits.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._threads, self.path.open("a+b") as file:
            if wait is None:
                fcntl.flock(file, fcntl.LOCK_EX)  # let go when the file closes, however that comes about
            else:
                take(file, fcntl.LOCK_EX, wait, TOLD_AFTER_S)
            held = Exclusive(file, self._offset)
            try:
                yield held
            finally:
                self._offset = held.offset  # what was taken in is not taken in again, whatever went wrong after it


class Exclusive:
    """The time in which one thread of one process holds the file."""

    def __init__(self, file: BinaryIO, offset: int) -> None:
        self._file = file
        self.offset = offset

    def fresh(self) -> list[dict[str, object]]:
        """Whole records appended since this process last asked, by whomever."""
        self._file.seek(self.offset)
        tail = self._file.read()
        whole = tail[: tail.rfind(b"\n") + 1]
        self.offset += len(whole)
        return [record for line in whole.split(b"\n") if (record := _record(line)) is not None]

    def append(self, *records: Mapping[str, object]) -> None:
        """Write ``records`` and wait until the disk has them."""
        end = self._file.seek(0, os.SEEK_END)
        torn = False
        if end:
            self._file.seek(end - 1)
            torn = self._file.read(1) != b"\n"
        lines = b"".join(json.dumps(record).encode("ascii") + b"\n" for record in records)
        self._file.write(b"\n" + lines if torn else lines)
        self._file.flush()
        os.fsync(self._file.fileno())
        if not end:
            _sync_folder(Path(self._file.name).parent)


def _sync_folder(folder: Path) -> None:
    """Let the disk have the name of a new file too."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _record(line: bytes) -> dict[str, object] | None:
    try:
        record = json.loads(line)
    except ValueError:
        if line.strip():
            logger.warning("Skipped a line of %d bytes that a killed run left unfinished.", len(line))
        return None
    return record if isinstance(record, dict) else None
