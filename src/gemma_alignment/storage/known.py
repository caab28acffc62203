"""What this machine knows of the files that it has brought from or to a bucket."""

import sqlite3
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple


class Known(NamedTuple):
    """A file as both sides had it when it was last brought from one to the other."""

    version: str
    """Of the object."""
    size: int
    mtime_ns: int


class Files:
    """What is known of each file, in one small database that all processes of this machine share."""

    def __init__(self, path: Path) -> None:
        self._store = sqlite3.connect(path, timeout=60, check_same_thread=False, isolation_level=None)
        self._store.execute("PRAGMA journal_mode = WAL")
        self._store.execute("PRAGMA synchronous = NORMAL")  # no wait for the disk: what is not known is brought again
        self._store.execute(
            "CREATE TABLE IF NOT EXISTS files (name TEXT PRIMARY KEY, version TEXT, size INT, mtime_ns INT)"
        )

    def read(self) -> dict[str, Known]:
        """All of them, by name."""
        return {name: Known(*rest) for name, *rest in self._store.execute("SELECT * FROM files")}

    def note(self, name: str, known: Known) -> None:
        """Remember one."""
        self._store.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (name, *known))

    def forget(self, names: Iterable[str]) -> None:
        """Know nothing of these any more."""
        self._store.executemany("DELETE FROM files WHERE name = ?", [(name,) for name in names])


def missing(ours: bytes, theirs: bytes) -> bytes:
    """The lines of one file that the other one has not, each as often as it lacks."""
    more = Counter(ours.splitlines()) - Counter(theirs.splitlines())
    text = b"".join(line + b"\n" for line, times in more.items() for _ in range(times) if line)
    return b"\n" + text if text and theirs and not theirs.endswith(b"\n") else text
