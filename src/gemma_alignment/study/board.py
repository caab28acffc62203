"""What a study shows while it runs: a live table on a terminal, lines anywhere else."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gemma_alignment.fingerprints import Record
from gemma_alignment.stages import Stage
from gemma_alignment.study.processes import Child
from gemma_alignment.study.progress import Progress, clock

COLORS = {"running": "cyan", "done": "green", "failed": "red", "reused": "dim", "waiting": "dim"}
EVERY = 20.0
"""Seconds between two lines about the same run where there is no terminal."""


class Board:
    """Shows the state of every process; entered for as long as they run."""

    def __init__(self, children: Sequence[Child], data_root: Path, iterations: int, console: Console) -> None:
        self._children = children
        self._root = data_root
        self._iterations = iterations
        self._console = console
        self._epoch = time.time() - time.monotonic()
        self._live: Live | None = None
        self._said: dict[str, tuple[str, float]] = {}

    def __enter__(self) -> "Board":
        if self._console.is_terminal:
            self._live = Live(self._table(), console=self._console, refresh_per_second=2)
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
            self._live.stop()
        else:
            self.refresh()

    def refresh(self) -> None:
        """Show what changed."""
        if self._live is not None:
            self._live.update(self._table())
            return
        for child in self._children:
            state, when = self._said.get(child.run.label, ("waiting", 0.0))
            if child.state == state and (state != "running" or time.monotonic() - when < EVERY):
                continue
            self._said[child.run.label] = (child.state, time.monotonic())
            self._console.print(self._line(child), highlight=False, soft_wrap=True)

    def say(self, sentence: str) -> None:
        """Show a sentence above the state of the processes."""
        self._console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def _line(self, child: Child) -> Text:
        left = self._left(child)
        words = [f"{child.state:8}", f"{child.run.label:24}", clock(child.seconds), self._doing(child)]
        words.append(f"left {left}" if left else "")
        return Text("  ".join(word for word in words if word).rstrip())

    def _table(self) -> Table:
        table = Table(box=None, pad_edge=False)
        for heading in ("run", "state", "time", "left", "progress"):
            table.add_column(heading, no_wrap=heading != "progress")
        for child in self._children:
            color = COLORS[child.state]
            cells = [child.run.label, f"[{color}]{child.state}[/]", clock(child.seconds), self._left(child)]
            table.add_row(*cells, self._doing(child))
        return table

    def _progress(self, child: Child) -> Progress | None:
        """Of an arm, or of the stage of a longer process that runs just now."""
        stage = child.run.stages[-1]
        if not stage.is_arm:
            stage = next((one for one, record in self._records(child) if record.status == "running"), stage)
        if child.started is None:
            return None
        total = self._iterations if stage.is_arm else None
        return Progress.read(stage.directory(self._root), total, self._epoch + child.started)

    def _records(self, child: Child) -> list[tuple[Stage, Record]]:
        """The stages that this process began, with what they say of themselves."""
        found = [(stage, Record.read(stage.directory(self._root))) for stage in child.run.stages]
        return [(s, one) for s, one in found if one and child.wrote(one)]

    def _left(self, child: Child) -> str:
        progress = self._progress(child)
        left = progress.seconds_left if progress and child.state == "running" else None
        return "" if left is None else clock(left)

    def _doing(self, child: Child) -> str:
        """The progress of an arm; of other processes the stages that are done, and that of the one that runs."""
        progress = self._progress(child)
        if child.run.stages[-1].is_arm:
            return progress.text() if progress else ""
        stages = [f"{stage.name} {record.status}" for stage, record in self._records(child)]
        return "  ".join([*stages, progress.text()] if progress and child.state == "running" else stages)
