"""What a training loop reports, written while it runs: three line files and curves in MLflow."""

import hashlib
import json
import math
import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from kedro.io import AbstractDataset, DatasetError

from gemma_alignment.datasets.atomic import beside
from gemma_alignment.datasets.local_store import Point
from gemma_alignment.datasets.metric_writer import MetricWriter
from gemma_alignment.errors import UserError
from gemma_alignment.schemas import PLANNED, Mark

if TYPE_CHECKING:
    from mlflow import MlflowClient

    from gemma_alignment.schemas import UpdateRecord

Kind = Literal["history", "timing", "samples"]
KINDS: tuple[Kind, ...] = ("history", "timing", "samples")
TIMESTAMP = "timestamp"
"""Key of ``timing.jsonl``: milliseconds since 1970 when the record came, so that a replay is exact."""


class _Prefix:
    """What a file begins with: how many bytes, and their checksum, counted on as lines come."""

    def __init__(self, content: bytes) -> None:
        self._size, self._sum = len(content), hashlib.sha256(content)

    def add(self, content: bytes) -> None:
        self._size += len(content)
        self._sum.update(content)

    @property
    def mark(self) -> Mark:
        return Mark(self._size, self._sum.hexdigest())


class RunLog:
    """The line files of one run directory, one line an iteration, flushed line by line.

    ``history.jsonl`` holds the reproducible numbers (sorted keys, compact, exact floats, so equal
    runs give equal bytes; what is not finite is null), ``timing.jsonl`` clock and memory readings,
    ``samples.jsonl`` responses. The first record drops the lines from its own iteration on, which an
    earlier run may have left: a run from the start begins with empty files, one that goes on from a
    checkpoint cuts them where that was taken. Until then they are as the earlier attempt left them.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self._begun = False
        self._cut: Mapping[str, Mark] | None = None
        self._prefixes: dict[Kind, _Prefix] = {}
        self._continued = False
        self._writer: MetricWriter | None = None

    def attach(self, client: "MlflowClient", run_id: str, continued: bool = False) -> None:
        """From now on send the metrics to this MLflow run too, in the background.

        A run that is ``continued`` holds points of an earlier attempt: those are not sent again.
        """
        if self._writer is None or self._writer.run_id != run_id:
            self.close()
            self._continued = continued
            self._writer = MetricWriter(client, run_id, continued=continued)

    @property
    def has_begun(self) -> bool:
        """Whether any line was written."""
        return self._begun

    def position(self) -> dict[str, Mark]:
        """How far each file has come, by what was written to it."""
        return {kind: (self._prefixes.get(kind) or _Prefix(self._bytes(kind))).mark for kind in KINDS}

    def sync(self) -> None:
        """Return when the lines so far outlast a loss of power."""
        for kind in KINDS:
            with self.path(kind).open("ab") as file:
                os.fsync(file.fileno())

    def resume(self, position: Mapping[str, Mark]) -> None:
        """Let the next record follow the lines before ``position``.

        Raises:
            UserError: when the files are shorter than that, or their lines are not those that were written.
        """
        anew = "begin anew: the same command with overwrite=true in place of resume=true."
        for kind in KINDS:
            prefix = _Prefix(self._bytes(kind)[: position[kind].bytes])
            if prefix.mark.bytes < position[kind].bytes:
                raise UserError(
                    f"{self.path(kind)} is shorter than when the checkpoint was taken: lines are lost. "
                    f"Bring the file back, or {anew}"
                )
            if prefix.mark != position[kind]:
                raise UserError(
                    f"{self.path(kind)} is not what it was when the checkpoint was taken: the checksum of its first "
                    f"{position[kind].bytes:,} bytes is another. Bring the file back, or {anew}"
                )
            self._prefixes[kind] = prefix
        self._cut = position

    def append(self, record: "UpdateRecord") -> None:
        """Write the lines of one iteration and queue its metrics for MLflow."""
        if not self._begun:
            self._begin(record.iteration)
        now = time.time_ns() // 1_000_000
        history = {"iteration": record.iteration, **_numbers(record.metrics)}
        timing = {"iteration": record.iteration, TIMESTAMP: now, **_numbers(record.timing)}
        samples = [{"iteration": record.iteration, **sample} for sample in record.samples]
        self._write("history", [history])
        self._write("timing", [timing])
        self._write("samples", samples)
        if self._writer is not None:
            self._writer.add(_points(history, now) + _points(timing, now))

    def rows(self, kind: Kind) -> list[dict[str, Any]]:
        """The lines of one file so far; a last line that is still being written is left out.

        Raises:
            UserError: for a line that the disk has damaged.
        """
        path = self.path(kind)
        if not path.exists():
            return []
        found = []
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
            try:
                found.append(json.loads(line))
            except ValueError as error:
                raise UserError(
                    f"Line {number} of {path} is damaged: {error}. Bring the file back, or begin anew: the same "
                    "command with overwrite=true."
                ) from error
        return found

    def path(self, kind: Kind) -> Path:
        """Where the lines of ``kind`` stand."""
        return self.directory / f"{kind}.jsonl"

    def points(self) -> list[Point]:
        """Every metric of the two files, with the time at which it was recorded."""
        timing = {row["iteration"]: row for row in self.rows("timing")}
        found: list[Point] = []
        for row in self.rows("history"):
            clock = timing.get(row["iteration"])
            if clock is not None:
                found += _points(row, clock[TIMESTAMP]) + _points(clock, clock[TIMESTAMP])
        return found

    def close(self) -> None:
        """Send MLflow what it does not hold yet, and let go of its run."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            is_mine = self._begun or self._continued or self._cut is not None
            writer.close(self.points() if is_mine else [])

    def _begin(self, first: int) -> None:
        self._begun = True
        if self._cut is not None:
            for kind in KINDS:
                os.truncate(self.path(kind), self._cut[kind].bytes)
            return
        for kind in KINDS:
            kept = _lines(row for row in self.rows(kind) if row["iteration"] < first) if first else b""
            with beside(self.path(kind)) as path:
                path.write_bytes(kept)
            self._prefixes[kind] = _Prefix(kept)

    def _write(self, kind: Kind, rows: Iterable[Mapping[str, Any]]) -> None:
        lines = _lines(rows)
        # opened anew each time: between two nodes the file may have been saved again by the first one
        with self.path(kind).open("ab") as file:
            file.write(lines)
        self._prefixes[kind].add(lines)

    def _bytes(self, kind: Kind) -> bytes:
        return path.read_bytes() if (path := self.path(kind)).exists() else b""


class RunLogDataset(AbstractDataset[None, RunLog]):
    """The log of a run directory as the input of a training node: ``load`` opens it, ``save`` refuses."""

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self._log = RunLog(self._filepath)
        self.metadata = metadata

    def load(self) -> RunLog:
        """The log; every node of a run that loads it gets the same one."""
        return self._log

    def save(self, data: None) -> None:
        """Refused: a node writes to the log that it loaded.

        Raises:
            DatasetError: always.
        """
        raise DatasetError("a run log is an input: append records to it, do not return it")

    def _exists(self) -> bool:
        return True  # a log can always be opened, so it is never a missing input

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}


def _lines(rows: Iterable[Mapping[str, Any]]) -> bytes:
    """One a row, compact, with sorted keys."""
    texts = (json.dumps(row, sort_keys=True, separators=(",", ":"), ensure_ascii=False) + "\n" for row in rows)
    return "".join(texts).encode()


def _numbers(values: Mapping[str, Any]) -> dict[str, int | float | None]:
    """Plain numbers: integers stay integers, NaN and infinities are None."""
    return {key: _number(value) for key, value in values.items()}


def _number(value: Any) -> int | float | None:
    if isinstance(value, int):
        return int(value)
    number = float(value)
    return number if math.isfinite(number) else None


def _points(row: Mapping[str, Any], timestamp: int) -> list[Point]:
    step = row["iteration"]
    skipped = ("iteration", TIMESTAMP, PLANNED)
    return [
        Point(key, math.nan if value is None else float(value), timestamp, step)
        for key, value in row.items()
        if key not in skipped
    ]
