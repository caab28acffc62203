"""One run of a study on whatever machine a scheduler chose, for the first time or after an earlier machine was lost."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import ATTEMPT, Record
from gemma_alignment.storage.lease import BEAT, GIVEN_UP, LEASE, is_anothers
from gemma_alignment.storage.mirror import Mirror
from gemma_alignment.storage.names import RECORD, but_checkpoints, group_of
from gemma_alignment.storage.patience import patiently
from gemma_alignment.study.going_on import going_on
from gemma_alignment.study.machine import RIGHTS, Outcome, Premises
from gemma_alignment.study.orphans import settle
from gemma_alignment.study.plan import Run
from gemma_alignment.study.processes import GRACE
from gemma_alignment.tether import PARENT

INTERRUPTED = (128 + signal.SIGTERM, 128 + signal.SIGINT)
"""Exit statuses of a run that was asked to stop."""


@dataclass(frozen=True)
class Attempt:
    """What a scheduler is handed for one run: called on a machine of the cluster, it does the run there.

    Called again, on whatever machine, it goes on where the earlier call was cut off: at the last checkpoint.
    """

    run: Run
    premises: Premises
    """What the machine must have, the project and the data folder among it."""
    log: Path
    variables: Mapping[str, str]
    """The environment of the run, beyond that of the machine."""
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells the records of its calls from all that stood there, in whatever copy of the data, before the first."""

    def __call__(self) -> Outcome:
        """Do the run, or what is left of it."""
        address, root = self.premises.address, self.premises.data_root
        try:
            if address is None:
                return self._here(None)
            with closing(Mirror(address)) as mirror:
                premises = dataclasses.replace(self.premises, data_root=mirror.folder)
                log = mirror.folder / self.log.relative_to(root)
                return dataclasses.replace(self, premises=premises, log=log)._here(mirror)
        except UserError as error:
            return Outcome(1, f"{socket.gethostname()}: {error}")

    def _here(self, mirror: Mirror | None) -> Outcome:
        patiently(self.premises.check)
        self._begin() if mirror is None else patiently(partial(self._fetch, mirror))
        run = patiently(partial(self.left, mirror))
        if run is None:
            return Outcome(0)
        with self.log.open("ab" if run.params.get("resume") else "wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "gemma_alignment.tether", "kedro", *run.arguments()],
                cwd=self.premises.project,
                env={**os.environ, **self.variables, ATTEMPT: self.mark, PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            return Outcome(self._waited_for(process, mirror))
        finally:
            _end(process)
            self._bring_log(mirror, process.pid)

    def _waited_for(self, process: subprocess.Popen[bytes], mirror: Mirror | None) -> int:
        if mirror is None:
            return process.wait()
        while True:
            self._bring_log(mirror, process.pid)
            with suppress(subprocess.TimeoutExpired):
                return process.wait(BEAT)

    def _bring_log(self, mirror: Mirror | None, pid: int) -> None:
        """The log is this process's; all else is brought by the run itself, process ``pid``.

        Where another one has the run's folder, that one's log is there.
        """
        if mirror is not None and (log := mirror.name_of(self.log)) is not None:
            group = group_of(log)
            with suppress(UserError):  # it is tried again, and what the study needs to know is no log
                if group == log or not is_anothers(mirror.bucket, f"{group}/{LEASE}", pid):
                    mirror.push([group], wanted=log.__eq__)

    def _fetch(self, mirror: Mirror) -> None:
        """What says how far an earlier attempt came; and that this one has begun is seen by its log."""
        stages = {group_of(str(mirror.name_of(stage.directory(mirror.folder)))) for stage in self.run.stages}
        log = group_of(str(mirror.name_of(self.log)))
        mirror.pull(lambda name: group_of(name) in {*stages, log} and but_checkpoints(name))
        mirror.claim({log} - stages)
        self._begin()

    def _begin(self) -> None:
        """Let it be seen that this attempt has begun.

        Raises:
            UserError: where the folder cannot be written.
        """
        try:
            self.log.parent.mkdir(parents=True, exist_ok=True)
            self.log.touch()
        except OSError as error:
            raise UserError(f"the data folder cannot be written ({error}); {RIGHTS}") from error

    def left(self, mirror: Mirror | None = None) -> Run | None:
        """The run without the stages that an earlier attempt finished, on from its checkpoint; None: all are.

        With a ``mirror``, one that only this machine knows of is left: it was finished while the bucket was away, and
        begins by bringing there all that it made.

        Raises:
            UserError: while a machine that was given up still writes.
        """
        folders = [stage.directory(self.premises.data_root) for stage in self.run.stages]
        settle(filter(self._begun, folders), "its machine {host} was lost or taken away", GIVEN_UP)
        if not any(map(self._begun, folders)):
            return self.run
        done = [
            record is not None and self.wrote(record) and record.status == "finished" and _is_there(folder, mirror)
            for folder, record in zip(folders, map(Record.read, folders), strict=True)
        ]
        if all(done):
            return None
        params = {**self.run.params, "overwrite": False}  # what was to be overwritten is; the rest is this study's
        rest = dataclasses.replace(self.run, pipelines=self.run.pipelines[done.index(False) :], params=params)
        return going_on(rest, self.premises.data_root)

    def wrote(self, record: Record) -> bool:
        """Whether a stage's record is of a call of this, not of an earlier run in the same folder."""
        return record.attempt == self.mark

    def _begun(self, folder: Path) -> bool:
        record = Record.read(folder)
        return record is not None and self.wrote(record)


def _is_there(folder: Path, mirror: Mirror | None) -> bool:
    """Whether what the record of a stage says stands in the bucket too, where there is one."""
    return mirror is None or mirror.bucket.read(f"{mirror.name_of(folder)}/{RECORD}") == (folder / RECORD).read_bytes()


def _end(process: subprocess.Popen[bytes]) -> None:
    """Whatever ends the attempt ends the run: SIGTERM first, so that it says so in its files."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
