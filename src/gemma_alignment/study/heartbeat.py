"""Signs of life of a study's processes: what they write. Who writes nothing for long is reported, then ended."""

import os
import signal
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma_alignment.parameters.study import StudyParameters
from gemma_alignment.stages import CLOSING
from gemma_alignment.study import processes
from gemma_alignment.study.processes import Child
from gemma_alignment.study.progress import clock

LOOK = 1.0
"""Seconds between two looks at the files."""
LONGEST = 5.0
"""What one look adds to a silence at most: where this process stood still, so may have the others."""

Trace = tuple[tuple[str, int, int], ...]


@dataclass
class _Pulse:
    trace: Trace = ()
    silence: float = 0.0
    reported: bool = False
    asked: bool = False


class Heartbeat:
    """Watches the log, the line files and the checkpoints of each process.

    Silence is counted with the monotonic clock and files are compared with themselves, so a clock that is set
    does not end anything. Evaluation and report are reported only: a judge may take a day over its batches.
    """

    def __init__(self, settings: StudyParameters, data_root: Path) -> None:
        self._settings = settings
        self._root = data_root
        self._pulses: dict[int, _Pulse] = {}
        self._looked: float | None = None

    def look(self, children: Sequence[Child]) -> Iterator[str]:
        """End those that have been silent for too long; yields a sentence for each that is to be known of."""
        now = time.monotonic()
        since = 0.0 if self._looked is None else now - self._looked
        if self._looked is not None and since < LOOK:
            return
        self._looked = now
        for child in children:
            if child.state == "running":
                yield from self._judge(child, min(since, LONGEST))

    def _judge(self, child: Child, passed: float) -> Iterator[str]:
        pulse = self._pulses.setdefault(id(child), _Pulse())
        trace = tuple(self._trace(child))
        if trace != pulse.trace:
            self._pulses[id(child)] = _Pulse(trace)
            return
        pulse.silence += passed
        limit = self._settings.silence_limit_s
        if not pulse.reported and pulse.silence >= self._settings.silence_report_s:
            pulse.reported = True
            yield f"{child.run.label} has written nothing for {clock(pulse.silence)} ({child.log})"
        if limit is None or pulse.silence < limit or child.run.pipelines[-1] in CLOSING:
            return
        if not pulse.asked:
            pulse.asked = True
            child.stopped = f"it wrote nothing for {clock(pulse.silence)} and was stopped (study.silence_limit_s)"
            yield f"{child.run.label}: {child.stopped}"
            child.signal(signal.SIGTERM)
        elif pulse.silence >= limit + processes.GRACE:
            child.signal(signal.SIGKILL)

    def _trace(self, child: Child) -> Iterator[tuple[str, int, int]]:
        folders = [stage.directory(self._root) for stage in child.run.stages]
        for place in (child.log, *(path for folder in folders for path in _entries(folder))):
            try:
                found = place.stat()
            except OSError:
                continue
            yield str(place), found.st_size, found.st_mtime_ns


def _entries(folder: Path) -> list[Path]:
    """What stands directly in a folder: a checkpoint that is added changes the time of ``checkpoints``."""
    try:
        return sorted(Path(entry.path) for entry in os.scandir(folder))
    except OSError:
        return []
