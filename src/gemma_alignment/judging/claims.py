"""Each request is under way once: in one thread of one process, whoever shares the folder."""

import fcntl
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gemma_alignment.judging.locks import take

GATE = "gate"
"""The file that every claim shares and that whoever wants to be alone locks."""


class Claims:
    """Locks of the operating system on empty files, one for each first byte of a key.

    Such a lock ends with the process that holds it, however that comes about: a claim of the dead is no
    claim, and nobody has to guess who lives. Requests that share a file by chance wait for one another.

    Args:
        folder: of the files; made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @contextmanager
    def held(self, key: str, wait: Callable[[float], None]) -> Iterator[None]:
        """Have the request ``key`` (a hex digest) to oneself.

        Args:
            key: the request's key in the cache.
            wait: sleeps for so many seconds, or raises to end the waiting.
        """
        with self._locked(GATE, fcntl.LOCK_SH, wait), self._locked(key[:2], fcntl.LOCK_EX, wait):
            yield

    @contextmanager
    def alone(self, wait: Callable[[float], None]) -> Iterator[None]:
        """Have every request to oneself."""
        with self._locked(GATE, fcntl.LOCK_EX, wait):
            yield

    @contextmanager
    def _locked(self, name: str, kind: int, wait: Callable[[float], None]) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / name).open("ab") as file:
            take(file, kind, wait, 0.0 if name == GATE else math.inf)
            yield  # let go when the file closes
