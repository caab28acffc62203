"""One run of a study on whatever machine a scheduler chose, for the first time or after an earlier machine was lost."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import NamedTuple

from gemma_alignment import __version__
from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import Record
from gemma_alignment.storage.lease import BEAT, Lease
from gemma_alignment.storage.mirror import Mirror
from gemma_alignment.storage.names import but_checkpoints, group_of
from gemma_alignment.study.going_on import going_on
from gemma_alignment.study.lock import LOCK
from gemma_alignment.study.plan import Run
from gemma_alignment.study.processes import GRACE, TICK
from gemma_alignment.study.tether import PARENT

DECISIVE = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "kedro", "mlflow")
"""Packages of which another version may make other numbers, or files that cannot be read."""
INTERRUPTED = (128 + signal.SIGTERM, 128 + signal.SIGINT)
"""Exit statuses of a run that was asked to stop."""


class Outcome(NamedTuple):
    """How an attempt ended."""

    code: int
    """Exit status of the run."""
    word: str | None = None
    """Why the run was not even started."""


def versions() -> dict[str, str]:
    """What this machine would run with."""
    found = {"python": python_version(), "gemma_alignment": __version__}
    for name in DECISIVE:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found


@dataclass(frozen=True)
class Attempt:
    """What a scheduler is handed for one run: called on a machine of the cluster, it does the run there.

    Called again, on whatever machine, it goes on where the earlier call was cut off: at the last checkpoint.
    """

    run: Run
    project: Path
    data_root: Path
    log: Path
    variables: Mapping[str, str]
    """The environment of the run, beyond that of the machine."""
    before: tuple[Record | None, ...]
    """What its stages' records said when it was handed over: another record is of an earlier attempt."""
    lock: str
    """What the study wrote into the lock of its folder: who reads the same there shares the folder."""
    versions: Mapping[str, str]
    """What the study's own machine runs with."""
    address: str | None = None
    """Of the bucket whose working folder the data folder is: each machine has one of its own."""

    def __call__(self) -> Outcome:
        """Do the run, or what is left of it."""
        try:
            if self.address is None:
                return self._here(None)
            with closing(Mirror(self.address)) as mirror:
                log = mirror.folder / self.log.relative_to(self.data_root)
                return dataclasses.replace(self, data_root=mirror.folder, log=log)._here(mirror)
        except UserError as error:
            return Outcome(1, f"{socket.gethostname()}: {error}")

    def _here(self, mirror: Mirror | None) -> Outcome:
        if (word := self.refusal(mirror)) is not None:
            return Outcome(1, f"{socket.gethostname()}: {word}")
        if mirror is not None:
            self._fetch(mirror)
        run = self.left()
        if run is None:
            return Outcome(0)
        with self.log.open("ab" if run.params.get("resume") else "wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "gemma_alignment.study.tether", "kedro", *run.arguments()],
                cwd=self.project,
                env={**os.environ, **self.variables, PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            return Outcome(self._waited_for(process, mirror))
        finally:
            _end(process)
            self._bring_log(mirror)

    def _waited_for(self, process: subprocess.Popen[bytes], mirror: Mirror | None) -> int:
        if mirror is None:
            return process.wait()
        while True:
            self._bring_log(mirror)
            with suppress(subprocess.TimeoutExpired):
                return process.wait(BEAT)

    def _bring_log(self, mirror: Mirror | None) -> None:
        """The log is this process's; all else is brought by the run itself."""
        if mirror is not None and (log := mirror.name_of(self.log)) is not None:
            with suppress(UserError):  # it is tried again, and what the study needs to know is no log
                mirror.push([group_of(log)], wanted=log.__eq__)

    def _fetch(self, mirror: Mirror) -> None:
        """What says how far an earlier attempt came; and that this one has begun is seen by its log."""
        stages = {group_of(str(mirror.name_of(stage.directory(mirror.folder)))) for stage in self.run.stages}
        log = group_of(str(mirror.name_of(self.log)))
        mirror.pull(lambda name: group_of(name) in {*stages, log} and but_checkpoints(name))
        mirror.claim({log} - stages)
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.log.touch()

    def refusal(self, mirror: Mirror | None = None) -> str | None:
        """Why this machine cannot do the run; asked before anything is spent."""
        other = [
            f"{name} {here} (the study's machine has {self.versions.get(name)})"
            for name, here in versions().items()
            if here != self.versions.get(name)
        ]
        if other:
            return f"other versions than where the study was started: {', '.join(other)}; install the same on both"
        if not (self.project / "pyproject.toml").is_file():
            return f"the project's folder {self.project} is not there; every machine needs it under the same path"
        if mirror is not None:
            mirror.bucket.check()
            is_shared = Lease(mirror.bucket, LOCK, {}, self.lock).is_mine()
            return None if is_shared else f"{self.address} is held by another study, or by none, as seen from here"
        try:
            shared = (self.data_root / LOCK).read_text(encoding="utf-8")
        except OSError as error:
            return f"the data folder cannot be read ({error}); every machine needs it under the same path"
        if shared != self.lock:
            return f"{self.data_root} is another folder here than on the study's machine; it has to be a shared one"
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.log.touch()
        except OSError as error:
            return f"the data folder cannot be written ({error}); give the user of the jobs the right to"
        return None

    def left(self) -> Run | None:
        """The run without the stages that an earlier attempt finished, on from its checkpoint; None: all are."""
        folders = [stage.directory(self.data_root) for stage in self.run.stages]
        _wait_for_the_end(folders)
        records = [Record.read(folder) for folder in folders]
        if all(record == before for record, before in zip(records, self.before, strict=True)):
            return self.run
        for folder, record, before in zip(folders, records, self.before, strict=True):
            if record is not None and record != before and record.status == "running":
                record.end("failed", f"its machine {record.host} was lost or taken away").write(folder)
        done = [
            record is not None and record != before and record.status == "finished"
            for record, before in zip(records, self.before, strict=True)
        ]
        if all(done):
            return None
        params = {**self.run.params, "overwrite": False}  # what was to be overwritten is; the rest is this study's
        rest = dataclasses.replace(self.run, pipelines=self.run.pipelines[done.index(False) :], params=params)
        return going_on(rest, self.data_root)


def _wait_for_the_end(folders: list[Path]) -> None:
    """An earlier attempt on this very machine ends with the process that started it; that takes a moment."""
    deadline = time.monotonic() + GRACE
    here = socket.gethostname()
    while time.monotonic() < deadline:
        records = [(folder, Record.read(folder)) for folder in folders]
        if not any(one and one.host == here and one.is_alive(folder) for folder, one in records):
            return
        time.sleep(TICK)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Whatever ends the attempt ends the run: SIGTERM first, so that it says so in its files."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
