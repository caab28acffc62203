"""Jobs of a SLURM cluster as the processes of a study, those of an earlier study of the folder among them.

Nothing here needs SLURM's accounting: what became of a job is read from its result, and else from the queue.
"""

import logging
import os
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gemma_alignment.errors import UserError, brief
from gemma_alignment.fingerprints import Record
from gemma_alignment.study.attempt import INTERRUPTED, Attempt
from gemma_alignment.study.machine import Outcome
from gemma_alignment.study.plan import Run
from gemma_alignment.study.remote import LOST, last_line, waited_for

logger = logging.getLogger(__name__)

FOLDER = "slurm"
"""Where submitit keeps what it sends and gets, in the data folder, or with a bucket in the project's; the runs' own
output is where it always is."""
LOOK = 2.0
"""Seconds between two looks at the queue."""
SETTLED = 15.0
"""Seconds that a job must have been over without a result: a queue is behind, and a job may be queued again."""
QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD", "REQUEUE_FED")
AT_WORK = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")


@dataclass(frozen=True)
class Queued:
    """What SLURM calls: an attempt that is taken away leaves no result, because SLURM may give it another place."""

    attempt: Attempt

    def __call__(self) -> Outcome:
        """Do the run, or what is left of it."""
        outcome = self.attempt()
        if outcome.code in INTERRUPTED:
            os._exit(outcome.code)
        return outcome

    def checkpoint(self) -> Any:
        """What submitit queues again when the time of the job is up: the same, which goes on where it was."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def ask(*words: str) -> str:
    """What a command of SLURM says.

    Raises:
        UserError: with its own words, where it refuses.
    """
    done = subprocess.run(words, text=True, capture_output=True, check=False)
    if done.returncode != 0:
        said = done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}"
        raise UserError(f"SLURM refuses ({words[0]}): {said}\nSee study.cluster in the parameters.")
    return done.stdout


@dataclass
class Queue:
    """The states of the jobs of one name, looked at every few seconds."""

    name: str
    nodes: Mapping[str, str] = field(default_factory=dict)
    """Job -> the machine that it had at the last look."""
    _states: Mapping[str, str] = field(default_factory=dict)
    _looked: float = float("-inf")
    _warned: bool = False

    def look(self) -> Mapping[str, str]:
        """Job -> state, of the present and of those that ended minutes ago.

        Raises:
            UserError: when SLURM does not answer.
        """
        text = ask("squeue", f"--name={self.name}", "--array", "--states=all", "--noheader", "--format=%i|%T|%N")
        lines = [line.strip().split("|") for line in text.splitlines() if line.strip()]
        self.nodes = {job: node for job, _, node in lines if node}
        return {job: state for job, state, _ in lines}

    def state(self, job: str) -> str | None:
        """The last known state of a job; None: SLURM does not know it any more. One that is silent is waited for."""
        if time.monotonic() - self._looked >= LOOK:
            try:
                self._states, self._warned = self.look(), False
            except UserError as error:
                if not self._warned:
                    logger.warning("%s The study waits for it; jobs go on meanwhile.", error)
                self._warned = True
            self._looked = time.monotonic()
        return self._states.get(job)


@dataclass
class Job:
    """One job, as the process of a child."""

    attempt: Attempt | None
    """None for one that only looks around."""
    handle: Any
    """Of submitit."""
    queue: Queue
    _outcome: Outcome | None = None
    _over_since: float | None = None
    _ended: bool = False
    """Whether the study took it away: it does not come back."""

    @property
    def is_waiting(self) -> bool:
        """Whether SLURM has not given it a place."""
        return self.queue.state(self.handle.job_id) in QUEUED

    @property
    def word(self) -> str | None:
        """What it, or SLURM, said of its end."""
        return None if self._outcome is None else self._outcome.word

    def poll(self) -> int | None:
        """Its exit status: that of the run, once it left one."""
        if self._outcome is None and self.handle.paths.result_pickle.exists():
            self._outcome = self._result()
        if self._outcome is None and self._has_vanished():
            self._outcome = Outcome(LOST, f"{self._name()} left no result: SLURM says {self._said()}")
        return None if self._outcome is None else self._outcome.code

    def wait(self) -> int:
        """Its exit status; a cluster that does not say in half a minute that it is over is not waited for."""
        if (code := waited_for(self.poll)) is None:
            self._outcome = Outcome(LOST, f"job {self.handle.job_id} may still run: SLURM did not take it away")
        return LOST if code is None else code

    def signal(self, number: signal.Signals) -> None:
        """Let SLURM take the job away, which asks first and shoots later; SIGKILL is at once."""
        if self.poll() is None:
            self._ended = True
            how = ["--signal=KILL", "--full"] if number == signal.SIGKILL else []
            subprocess.run(["scancel", *how, self.handle.job_id], capture_output=True, check=False)

    def wrote(self, record: Record) -> bool:
        """Whether the record is of this job."""
        return self.attempt is not None and self.attempt.wrote(record)

    def _result(self) -> Outcome:
        try:
            return Outcome(*self.handle.result())
        except Exception as error:  # what the job raised, in submitit's words; or a file that cannot be read
            return Outcome(LOST, f"{self._name()}: {last_line(error)}")

    def _has_vanished(self) -> bool:
        state = self.queue.state(self.handle.job_id)
        if state in QUEUED or state in AT_WORK:
            self._over_since = None
            return False
        self._over_since = self._over_since or time.monotonic()
        return self._ended or time.monotonic() - self._over_since >= SETTLED

    def _said(self) -> str:
        text = (self.handle.stderr() or "").strip() or (self.handle.stdout() or "").strip()
        last = text.splitlines()[-1:] or ["it wrote nothing: does its machine see the data folder?"]
        return f"{self.queue.state(self.handle.job_id) or 'nothing of it any more'} ({last[0]})"

    def _name(self) -> str:
        """Its number, and its machine where SLURM told."""
        self.queue.state(self.handle.job_id)
        node = self.queue.nodes.get(self.handle.job_id)
        return f"job {self.handle.job_id}" + (f" on {node}" if node else "")


@dataclass(frozen=True)
class Left:
    """A job that an earlier study of the folder submitted and that is not over."""

    attempt: Attempt
    handle: Any

    def does(self, run: Run) -> bool:
        """Whether it does what a study asks for now; how it begins does not count, nor what is done of it."""
        own = self.attempt.run
        stages = {stage.run_name for stage in own.stages}
        is_same = (own.env, _lasting(own)) == (run.env, _lasting(run))
        return is_same and all(stage.run_name in stages for stage in run.stages)


def _lasting(run: Run) -> dict[str, Any]:
    return {key: value for key, value in run.params.items() if key not in ("resume", "overwrite")}


def left_over(jobs: Iterable[str], data_root: Path) -> list[Left]:
    """What jobs of an earlier study do, from what submitit sent them.

    Raises:
        UserError: for one of which that cannot be read.
    """
    import submitit

    found = []
    for job in jobs:
        handle: Any = submitit.SlurmJob(data_root / FOLDER, job)
        try:
            found.append(Left(handle.submission().function.attempt, handle))
        except Exception as error:  # a file that is not there, or of another version
            raise UserError(
                f"what job {job} of an earlier study does cannot be read ({brief(error)}): {end_by([job])}"
            ) from error
    return found


def end_by(jobs: Iterable[str]) -> str:
    """How to end jobs of an earlier study."""
    return f"wait for it, or end it by: scancel {' '.join(sorted({job.partition('_')[0] for job in jobs}))}"
