"""How far a run is, read from the line files that it writes."""

import json
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Self

from gemma_alignment.datasets.run_log import TIMESTAMP

TAIL = 1 << 16


@dataclass(frozen=True)
class Progress:
    """The last iteration of a run and what it reported."""

    iteration: int
    total: int
    history: dict[str, Any]
    timing: dict[str, Any]
    pace: float | None
    """Seconds an iteration took of late, in this attempt; None before its second record."""

    @classmethod
    def read(cls, directory: Path, total: int, since: float = 0.0) -> Self | None:
        """The progress of the run in ``directory``; None where nothing was written after ``since``."""
        timing = [row for row in last_rows(directory / "timing.jsonl") if row.get(TIMESTAMP, 0) >= since * 1000]
        history = last_rows(directory / "history.jsonl")
        if not timing or not history:
            return None
        first, last = timing[0], timing[-1]
        steps = last["iteration"] - first["iteration"]
        # the middle one: where the clock was set, one of them is wrong
        gaps = [(after[TIMESTAMP] - before[TIMESTAMP]) / 1000 for before, after in pairwise(timing)]
        pace = max(0.0, median(gaps)) if steps > 0 else None
        return cls(int(history[-1]["iteration"]), total, history[-1], last, pace)

    @property
    def seconds_left(self) -> float | None:
        """At that pace."""
        return None if self.pace is None else self.pace * max(0, self.total - self.iteration)

    def text(self) -> str:
        """Iteration, reward, KL and speed in one line; a number that is not there is left out."""
        shown = [f"iteration {self.iteration}/{self.total}"]
        for key, name, digits in (("reward/score_mean", "reward", 3), ("policy/kl_to_reference", "KL", 3)):
            if isinstance(value := self.history.get(key), int | float):
                shown.append(f"{name} {value:.{digits}f}")
        if isinstance(speed := self.timing.get("rollout/tokens_per_second"), int | float):
            shown.append(f"{speed:.0f} tokens/s")
        return "  ".join(shown)


def last_rows(path: Path) -> list[dict[str, Any]]:
    """The last complete lines of a file of JSON lines, some dozens."""
    try:
        with path.open("rb") as file:
            start = max(0, file.seek(0, os.SEEK_END) - TAIL)
            file.seek(start)
            lines = file.read().split(b"\n")[:-1]
        return [json.loads(line) for line in (lines[1:] if start else lines)]
    except (OSError, ValueError):
        return []


def clock(seconds: float) -> str:
    """``1:05`` or ``2:03:04``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
