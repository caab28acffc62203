"""Metrics on their way to MLflow: batches from a thread beside the training, the rest at its end."""

import logging
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gemma_alignment.datasets.local_store import LocalStore, Point
from gemma_alignment.errors import let_through

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

INTERVAL = 4.0
"""Seconds between two batches: a call costs as much as a hundred points, and curves are at most 5 s late."""
BATCH = 1000
"""MLflow takes at most this many metrics a call."""


class MetricWriter:
    """Sends queued points to one MLflow run every few seconds.

    A server that does not answer costs one warning, never the training: points wait in the queue,
    and ``close`` sends what was not sent. Where a run is ``continued``, what an earlier attempt sent is
    read back first and not sent again: an iteration that is done twice has another timestamp.
    """

    def __init__(
        self, client: "MlflowClient", run_id: str, interval: float = INTERVAL, continued: bool = False
    ) -> None:
        self.run_id = run_id
        self._stored: set[tuple[str, int]] | None = None if continued else set()
        self._client = client
        self._local = LocalStore.of(client.tracking_uri)
        self._interval = interval
        self._queue: list[Point] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._warned = False
        self._thread = threading.Thread(target=self._run, name=f"metrics-{run_id[:8]}", daemon=True)
        self._thread.start()

    def add(self, points: Iterable[Point]) -> None:
        """Queue points for the next batch."""
        with self._lock:
            self._queue.extend(points)

    def close(self, everything: Sequence[Point]) -> None:
        """Send the queue and those of ``everything`` that the run does not hold."""
        self._stop.set()
        self._thread.join()
        self.add(everything)
        try:
            self._flush()
        except Exception as error:
            let_through(error)
            self._warn(error)
        finally:
            if self._local is not None:
                self._local.close()

    def _run(self) -> None:
        while not self._stop.wait(self._interval):
            try:
                self._flush()
            except Exception as error:  # whatever the server does, training goes on
                self._warn(error)

    def _flush(self) -> None:
        if self._stored is None:
            self._stored = stored(self._client, self.run_id, self._client.get_run(self.run_id).data.metrics)
        with self._lock:
            count = len(self._queue)
            queue = {(point.key, point.step): point for point in self._queue}
        missing = [point for key, point in queue.items() if key not in self._stored]
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            send(self._client, self.run_id, part, self._local)
            self._stored.update((point.key, point.step) for point in part)
        with self._lock:
            del self._queue[:count]

    def _warn(self, error: Exception) -> None:
        if not self._warned:
            self._warned = True
            logger.warning(
                "MLflow does not take the metrics of run %s (%s); training goes on, "
                "history.jsonl and timing.jsonl hold every number",
                self.run_id,
                error,
            )


def send(client: "MlflowClient", run_id: str, points: Sequence[Point], local: LocalStore | None = None) -> None:
    """Store ``points`` in the run in one call; none is no call.

    A ``local`` store takes them directly: about 8 µs a point, by the client's way 60.
    """
    from mlflow.entities import Metric

    if points and (local is None or not local.insert(run_id, points)):
        client.log_batch(run_id, metrics=[Metric(p.key, p.value, p.timestamp, p.step) for p in points])


def stored(client: "MlflowClient", run_id: str, keys: Iterable[str]) -> set[tuple[str, int]]:
    """Key and step of every point of ``keys`` that the run holds."""
    return {(key, metric.step) for key in keys for metric in client.get_metric_history(run_id, key)}


def synchronize(client: "MlflowClient", run_id: str, points: Sequence[Point]) -> int:
    """Send those of ``points`` whose key and step the run does not hold; how many that were."""
    there = stored(client, run_id, {point.key for point in points})
    missing = [point for point in points if (point.key, point.step) not in there]
    for start in range(0, len(missing), BATCH):
        send(client, run_id, missing[start : start + BATCH])
    return len(missing)
