"""What was said first of a key: a dict on disk."""

import sqlite3
from hashlib import sha256
from typing import Generic, TypeVar

T = TypeVar("T", str, int, bytes)


class Seen(Generic[T]):
    """Keys and the value that each was first given: however many they are, a few megabytes are held.

    The table is a temporary file of SQLite's own, which is gone with the object.
    """

    def __init__(self) -> None:
        self._table = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._table.execute("PRAGMA journal_mode = OFF")
        self._table.execute("CREATE TABLE seen (key BLOB PRIMARY KEY, value) WITHOUT ROWID")
        self._table.execute("BEGIN")

    def get(self, key: str | bytes) -> T | None:
        """The value of a key; None where it was not seen."""
        row = self._table.execute("SELECT value FROM seen WHERE key = ?", (_short(key),)).fetchone()
        return None if row is None else row[0]

    def first(self, key: str | bytes, value: T) -> T:
        """The value that the key was first given, which is this one where it was not seen before."""
        known = self.get(key)
        if known is not None:
            return known
        self._table.execute("INSERT INTO seen VALUES (?, ?)", (_short(key), value))
        return value

    def last(self, key: str | bytes, value: T) -> None:
        """Let this be the value of the key, whatever it was."""
        self._table.execute("REPLACE INTO seen VALUES (?, ?)", (_short(key), value))

    def __len__(self) -> int:
        """How many keys there are."""
        return int(self._table.execute("SELECT COUNT(*) FROM seen").fetchone()[0])


def _short(key: str | bytes) -> bytes:
    return sha256(key if isinstance(key, bytes) else key.encode("utf-8", "surrogatepass")).digest()
