"""The record of batches: what was planned, sent, handed in and collected, by this run and by others."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gemma_alignment.judging.append_log import AppendLog, Exclusive


@dataclass(frozen=True)
class Batch:
    """A number of requests handed in together."""

    mark: str
    """Its name before the service has one, and that of its reservation."""
    worst_usd: float
    """What was reserved for all of it."""
    prompt_version: str
    contents: Mapping[str, str]
    """Cache key -> content key of each request."""
    id: str | None = None
    """The service's name; None until it has said so."""
    sent_at: float = 0.0
    """When the service was last asked to start it, in seconds since 1970."""


@dataclass
class BatchLog:
    """The batches under way over one cache, read from their file each time it is held.

    Args:
        path: of the file.
        base_url: of the service; batches at others are none of its business.
        wait: sleeps for so many seconds, or raises to end the waiting for another process.
    """

    path: Path
    base_url: str
    wait: Callable[[float], None]
    under_way: dict[str, Batch] = field(default_factory=dict, init=False)
    """By mark."""
    refused: dict[str, frozenset[str]] = field(default_factory=dict, init=False)
    """By mark of a collected batch: the cache keys that the service will not judge."""

    def __post_init__(self) -> None:
        """Open nothing yet."""
        self._log = AppendLog(self.path)

    @contextmanager
    def held(self) -> Iterator["HeldLog"]:
        """Have the record to oneself, with everything that others have written taken in.

        Whoever hands a batch in holds it until the service has named the batch. So a batch without a
        name, seen by somebody else who holds it, is one whose owner was killed or gave up.
        """
        with self._log.locked(self.wait) as log:
            for record in log.fresh():
                self._take_in(record)
            yield HeldLog(self, log)

    def holds(self, key: str) -> bool:
        """Whether the request ``key`` waits in a batch."""
        if not self.path.exists():
            return False
        with self.held():
            return any(key in batch.contents for batch in self.under_way.values())

    def _take_in(self, record: Mapping[str, Any]) -> None:
        event, mark = record.get("event"), str(record.get("mark"))
        batch = self.under_way.get(mark)
        if event == "planned" and record["base_url"] == self.base_url:
            worst, version, contents = (record[name] for name in ("worst_usd", "prompt_version", "contents"))
            self.under_way[mark] = Batch(mark, worst, version, contents, sent_at=record["at"])
        elif event == "sent" and batch:
            self.under_way[mark] = replace(batch, sent_at=record["at"])
        elif event == "handed_in" and batch:
            self.under_way[mark] = replace(batch, id=record["id"])
        elif event == "collected" and self.under_way.pop(mark, None):
            self.refused[mark] = frozenset(record["refused"])


class HeldLog:
    """The time in which one process has the record to itself: each note is on the disk when its method returns."""

    def __init__(self, log: BatchLog, file: Exclusive) -> None:
        self._log = log
        self._file = file

    def planned(self, batch: Batch) -> None:
        """The batch is about to be reserved and sent."""
        facts = {"worst_usd": batch.worst_usd, "prompt_version": batch.prompt_version, "contents": batch.contents}
        self._note("planned", batch.mark, at=time.time(), base_url=self._log.base_url, **facts)

    def sent(self, mark: str) -> None:
        """The service is about to be asked to start it."""
        self._note("sent", mark, at=time.time())

    def handed_in(self, mark: str, name: str) -> Batch:
        """The service has named it."""
        self._note("handed_in", mark, id=name)
        return self._log.under_way[mark]

    def collected(self, mark: str, refused: set[str]) -> None:
        """Its replies are kept and its bill is settled, or it never reached the service."""
        self._note("collected", mark, refused=sorted(refused))

    def _note(self, event: str, mark: str, **facts: object) -> None:
        self._file.append({"event": event, "mark": mark, **facts})
        for record in self._file.fresh():
            self._log._take_in(record)
