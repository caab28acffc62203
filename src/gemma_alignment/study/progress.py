"""How far a run is, read from the line files that it writes."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, Self

from gemma_alignment.datasets.run_log import TIMESTAMP
from gemma_alignment.schemas import PLANNED

TAIL = 1 << 16
SHOWN = {
    "pretraining/loss": "loss", "sft/loss": "loss", "reward_model/loss": "loss",
    "reward/score_mean": "reward", "policy/kl_to_reference": "KL",
}  # fmt: skip


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
    def read(cls, directory: Path, total: int | None, since: float = 0.0) -> Self | None:
        """The progress of the run in ``directory``; None where nothing was written after ``since``.

        Without a ``total`` the lines say it; None too where they do not.
        """
        timing = [row for row in last_rows(directory / "timing.jsonl") if row.get(TIMESTAMP, 0) >= since * 1000]
        history = last_rows(directory / "history.jsonl")
        if total is None:
            total = next((int(row[PLANNED]) for row in reversed(timing) if PLANNED in row), None)
        if not timing or not history or total is None:
            return None
        # the middle one: where the clock was set, one of them is wrong
        pace = median(gaps) if (gaps := [_seconds_each(*two) for two in pairwise(timing)]) else None
        done = min(int(history[-1]["iteration"]), total)  # what is measured after the last step is a line too
        return cls(done, total, history[-1], timing[-1], None if pace is None else max(0.0, pace))

    @property
    def seconds_left(self) -> float | None:
        """At that pace."""
        return None if self.pace is None else self.pace * max(0, self.total - self.iteration)

    def text(self) -> str:
        """Iteration, reward, KL and speed, or loss, in one line; a number that is not there is left out."""
        shown = [f"iteration {self.iteration}/{self.total}"]
        for key, name in SHOWN.items():
            if isinstance(value := self.history.get(key), int | float):
                shown.append(f"{name} {value:.3f}")
        if isinstance(speed := self.timing.get("rollout/tokens_per_second"), int | float):
            shown.append(f"{speed:.0f} tokens/s")
        return "  ".join(shown)


def _seconds_each(before: Mapping[str, Any], after: Mapping[str, Any]) -> float:
    """From one line to the next, for each iteration in between."""
    passed = (after[TIMESTAMP] - before[TIMESTAMP]) / 1000
    return float(passed / max(1, after["iteration"] - before["iteration"]))


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
