"""Points straight into MLflow's file on this machine: its client makes objects of its database of every one of them."""

import math
import sqlite3
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

WAIT = 20.0
"""Seconds for which others may hold the file, as MLflow's own connections allow."""
SCHEMA = "dc11669786a5"
"""The revision of MLflow's tables for which these statements store what the client does; others are left to it."""
REVISION = "SELECT version_num FROM alembic_version"
ACTIVE = "SELECT 1 FROM runs WHERE run_uuid = ? AND lifecycle_stage = 'active'"
EVERY = "INSERT OR IGNORE INTO metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, ?, ?)"
LATEST = """
INSERT INTO latest_metrics (key, value, timestamp, step, is_nan, run_uuid) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (key, run_uuid) DO UPDATE
SET value = excluded.value, timestamp = excluded.timestamp, step = excluded.step, is_nan = excluded.is_nan
WHERE (excluded.step, excluded.timestamp, excluded.value) > (step, timestamp, value)
"""


class Point(NamedTuple):
    """One metric at one step; a point that is sent twice is stored once if its timestamp is the same."""

    key: str
    value: float
    timestamp: int
    """Milliseconds since 1970."""
    step: int


Row = tuple[str, float, int, int, bool, str]
"""Key, value, timestamp, step, whether the value is NaN, run."""


class LocalStore:
    """MLflow's file on this machine, open for the points of runs; not to be shared between threads at a time."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._connection: sqlite3.Connection | None = None

    @classmethod
    def of(cls, uri: str) -> "LocalStore | None":
        """That of a plain SQLite address; None for any other: a server, memory, options, characters in code."""
        from sqlalchemy.engine import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            url = make_url(uri)
        except ArgumentError:  # a name that MLflow knows, such as databricks
            return None
        is_file = url.drivername == "sqlite" and url.database not in (None, "", ":memory:")
        return cls(Path(str(url.database)).resolve()) if is_file and not set("?%") & set(uri) else None

    def insert(self, run_id: str, points: Iterable[Point]) -> bool:
        """Store points of a run in one transaction, as ``MlflowClient.log_batch`` would; False where it has to.

        Raises:
            sqlite3.Error: when the file is not there, or held by others for longer than ``WAIT``; nothing is stored.
            LookupError: when it holds no such run, or one that was deleted.
        """
        rows = [_row(run_id, point) for point in points]
        try:
            store = self._open()
            if store.execute(REVISION).fetchall() != [(SCHEMA,)]:
                return False
            with store:
                if store.execute(ACTIVE, (run_id,)).fetchone() is None:
                    raise LookupError(f"{self.file} holds no run {run_id}")
                store.executemany(EVERY, rows)
                store.executemany(LATEST, _latest(rows))
        except BaseException:
            self.close()  # whatever happened to the file, the next time it is opened anew
            raise
        return True

    def close(self) -> None:
        """Let go of the file."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            uri = f"{self.file.as_uri()}?mode=rw"  # a file that is missing is not made
            self._connection = sqlite3.connect(uri, uri=True, timeout=WAIT, check_same_thread=False)
        return self._connection


def _row(run_id: str, point: Point) -> Row:
    """MLflow keeps NaN as 0 with a mark, and infinities as the largest numbers."""
    is_nan = math.isnan(point.value)
    largest = sys.float_info.max
    value = 0.0 if is_nan else min(max(point.value, -largest), largest)
    return point.key, value, point.timestamp, point.step, is_nan, run_id


def _latest(rows: Sequence[Row]) -> list[Row]:
    """The last one of each key: by step, then by time, then by value."""
    found: dict[str, Row] = {}
    for row in rows:
        known = found.get(row[0])
        if known is None or (row[3], row[2], row[1]) > (known[3], known[2], known[1]):
            found[row[0]] = row
    return list(found.values())
