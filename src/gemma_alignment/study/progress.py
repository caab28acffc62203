"""How far a run is, read from the line files that it writes."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
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

    @classmethod
    def read(cls, directory: Path, total: int, since: float = 0.0) -> Self | None:
        """The progress of the run in ``directory``; None where nothing was written after ``since``."""
        timing = last_row(directory / "timing.jsonl")
        history = last_row(directory / "history.jsonl")
        if timing is None or history is None or timing.get(TIMESTAMP, 0) < since * 1000:
            return None
        return cls(int(history["iteration"]), total, history, timing)

    def seconds_left(self, elapsed: float) -> float | None:
        """At the speed so far, or None before the first update."""
        if self.iteration <= 0:
            return None
        return elapsed / self.iteration * max(0, self.total - self.iteration)

    def text(self) -> str:
        """Iteration, reward, KL and speed in one line; a number that is not there is left out."""
        shown = [f"iteration {self.iteration}/{self.total}"]
        for key, name, digits in (("reward/score_mean", "reward", 3), ("policy/kl_to_reference", "KL", 3)):
            if isinstance(value := self.history.get(key), int | float):
                shown.append(f"{name} {value:.{digits}f}")
        if isinstance(speed := self.timing.get("rollout/tokens_per_second"), int | float):
            shown.append(f"{speed:.0f} tokens/s")
        return "  ".join(shown)


def last_row(path: Path) -> dict[str, Any] | None:
    """The last complete line of a file of JSON lines."""
    try:
        with path.open("rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - TAIL))
            lines = file.read().split(b"\n")[:-1]
        return json.loads(lines[-1]) if lines else None
    except (OSError, ValueError):
        return None


def clock(seconds: float) -> str:
    """``1:05`` or ``2:03:04``."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
