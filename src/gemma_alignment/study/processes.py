"""A few processes at a time, each ``kedro run`` in a group of its own, with its output in a file."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from gemma_alignment.fingerprints import Record
from gemma_alignment.pipelines.several import PROCESSES
from gemma_alignment.study.plan import Run

ONE_THREAD = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""glibc: keep the buffers that every step frees and asks for again; faulting them in anew is system time."""
GRACE = 30.0
"""Seconds that a process has to end after SIGTERM."""
TICK = 0.25


class Process(Protocol):
    """A process of this machine: the part of ``subprocess.Popen`` that a study uses."""

    @property
    def pid(self) -> int: ...  # noqa: D102
    def poll(self) -> int | None: ...  # noqa: D102
    def wait(self) -> int | None: ...  # noqa: D102


class Started(Protocol):
    """Whatever runs a child: a process of this machine, or a job elsewhere."""

    @property
    def is_waiting(self) -> bool:
        """Whether it still waits for a place to run."""
        ...

    @property
    def word(self) -> str | None:
        """Why it ended, where whoever ran it knows more than the exit status says."""
        ...

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None before it ended."""
        ...

    def wait(self) -> int | None:
        """The exit status, once it has ended."""
        ...

    def signal(self, number: signal.Signals) -> None:
        """Ask it to end with SIGTERM, make it with SIGKILL."""
        ...

    def wrote(self, record: Record) -> bool:
        """Whether a stage's record is of this process."""
        ...


@dataclass(frozen=True)
class Here:
    """A process of this machine, at the head of a group of its own."""

    process: Process
    is_waiting: bool = False
    word: str | None = None

    @property
    def pid(self) -> int:
        """Its number."""
        return self.process.pid

    def poll(self) -> int | None:
        """Its exit status."""
        return self.process.poll()

    def wait(self) -> int | None:
        """Its exit status, once it has ended."""
        return self.process.wait()

    def signal(self, number: signal.Signals) -> None:
        """To the whole group, if it still runs."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)

    def wrote(self, record: Record) -> bool:
        """By its number: what stands in the folder was written by a process of this machine."""
        return record.pid == self.process.pid


class Start(Protocol):
    """A way to start the processes of a study."""

    def __call__(
        self, words: Sequence[str], project: Path, variables: Mapping[str, str], output: IO[bytes]
    ) -> Process:
        """Start ``kedro`` with words in a folder, under variables, in a group of its own, its output in a file."""


def anew(words: Sequence[str], project: Path, variables: Mapping[str, str], output: IO[bytes]) -> Process:
    """A process of ``kedro`` that loads everything itself, in a group of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "kedro", *words],
        cwd=project,
        env=dict(variables),
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


@contextmanager
def undivided() -> Iterator[None]:
    """SIGINT and SIGTERM come after the block: a process that was started and not noted yet could not be stopped.

    They are held back by handlers, not blocked: a process that is started anew would inherit the block.
    """
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda number, _: came.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for first in came[:1]:
            signal.raise_signal(first)


@dataclass
class Child:
    """One process of the study."""

    run: Run
    log: Path
    """Where its output goes."""
    process: Started | None = None
    started: float | None = None
    ended: float | None = None
    reused: bool = False
    """Not started: what it would make is there."""
    stopped: str | None = None
    """Why the study ended it, if it did."""

    @property
    def code(self) -> int | None:
        """Its exit status; negative for a signal; None before it ended."""
        return None if self.process is None else self.process.poll()

    @property
    def state(self) -> str:
        """``waiting``, ``running``, ``done``, ``failed`` or ``reused``."""
        if self.reused:
            return "reused"
        if self.process is None or (self.code is None and self.process.is_waiting):
            return "waiting"
        if self.code is None:
            return "running"
        return "done" if self.code == 0 else "failed"

    @property
    def seconds(self) -> float:
        """How long it has run, or ran."""
        if self.started is None:
            return 0.0
        return (self.ended or time.monotonic()) - self.started

    def start(
        self, project: Path, variables: Mapping[str, str], start: Start = anew, cores: frozenset[int] = frozenset()
    ) -> None:
        """Start ``kedro run``, on ``cores`` alone if any are named; Ctrl-C does not reach it, :meth:`stop` does."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab" if self.run.params.get("resume") else "wb") as output, undivided():
            self.process = here = Here(start(self.run.arguments(), project, variables, output))
        self.started = time.monotonic()
        if cores:
            with suppress(OSError):  # over already, or not ours to place
                os.sched_setaffinity(here.pid, cores)

    def signal(self, number: signal.Signals) -> None:
        """Ask it to end with SIGTERM, make it with SIGKILL, if it still runs."""
        if self.process is not None:
            self.process.signal(number)

    def wrote(self, record: Record) -> bool:
        """Whether a stage's record is of this child, not of an earlier run in the same folder."""
        return self.process is not None and self.process.wrote(record)

    @property
    def end(self) -> str:
        """How a process ended that did not say so itself."""
        if said := self.stopped or (self.process and self.process.word):
            return said
        if self.code == -signal.SIGKILL:
            return "the process was killed (status -9): by hand, or by the system for want of memory"
        return f"the process ended without a word (status {self.code})"

    def tail(self, lines: int = 12) -> str:
        """The end of its output."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return "\n".join(text.rstrip().splitlines()[-lines:])


def surroundings() -> dict[str, str]:
    """The variables of every child: this process's, one thread unless the user set more."""
    quiet = {"COLUMNS": "120", "PYTHONUNBUFFERED": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    threads = dict.fromkeys(ONE_THREAD, "1")
    defaults = {"TOKENIZERS_PARALLELISM": "false", **threads, **KEEP_MEMORY}
    return {**defaults, **os.environ, **quiet}


def environment(parent: str, study: str, tracking_uri: str, processes: int = 1) -> dict[str, str]:
    """The same, a child's place in MLflow, and how many processes train a policy."""
    from gemma_alignment.hooks.store import PARENT
    from gemma_alignment.hooks.tracking import STUDY

    own = {"MLFLOW_TRACKING_URI": tracking_uri, PARENT: parent, STUDY: study, PROCESSES: str(processes)}
    return {**surroundings(), **own}


def drive(children: Sequence[Child], workers: int, start: Callable[[Child, int], None]) -> Iterator[Child | None]:
    """Run ``children`` in order, ``workers`` at a time, each started in a place of its own, ``0 … workers - 1``.

    Yields each one that ended, None on a tick.
    """
    waiting, running = list(children), dict[int, Child]()
    while waiting or running:
        for place in range(workers):
            if waiting and place not in running:
                running[place] = waiting.pop(0)
                start(running[place], place)
        for child in running.values():
            if child.started is None and child.state != "waiting":
                child.started = time.monotonic()
        over = [place for place, child in running.items() if child.code is not None]
        for place in over:
            child = running.pop(place)
            child.ended = time.monotonic()
            yield child
        if not over:
            yield None
            time.sleep(TICK)


def stop(children: Sequence[Child]) -> None:
    """End what still runs: SIGTERM, so that each closes its runs itself, and SIGKILL for what stays."""
    for child in children:
        child.signal(signal.SIGTERM)
    deadline = time.monotonic() + GRACE
    for child in children:
        while child.process is not None and child.code is None and time.monotonic() < deadline:
            time.sleep(TICK)
        child.signal(signal.SIGKILL)
        if child.process is not None:
            child.process.wait()
        child.ended = child.ended or time.monotonic()


def shares(workers: int, threads: int) -> list[frozenset[int]]:
    """The cores of each worker: ``threads`` of its own where the workers fill this process's cores, else none.

    A few workers on many cores are left to the system: it knows what else runs, and another study's would be put on
    the same first cores. One alone is too: what it writes to MLflow in the background has the other core.
    """
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if workers == 1 or workers * threads != len(cores):
        return [frozenset()] * workers
    return [frozenset(cores[place * threads : (place + 1) * threads]) for place in range(workers)]


def may_use_gpu(device: str) -> bool:
    """Whether runs may go to a GPU: one is asked for or left open, and the system has one of NVIDIA's."""
    return device != "cpu" and any(Path("/dev").glob("nvidia[0-9]*"))


def default_workers(device: str) -> int:
    """As many as this process may use cores; one where the runs share a GPU."""
    if may_use_gpu(device):
        import torch

        if torch.cuda.is_available():
            return 1
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
