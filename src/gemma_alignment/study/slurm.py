"""The engine on a SLURM cluster, by way of submitit: the runs are a job array, and SLURM says when each has a place.

Nothing here needs SLURM's accounting: what became of a job is read from its result, and else from the queue.
"""

import hashlib
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import Record
from gemma_alignment.parameters.cluster import ClusterParameters
from gemma_alignment.study.attempt import INTERRUPTED, Attempt, Outcome
from gemma_alignment.study.engine import Site
from gemma_alignment.study.processes import Child, drive, stop
from gemma_alignment.study.remote import LOST, attempt_of, is_of, missing_extra, waited_for

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


def exchange(site: Site) -> Path:
    """Where submitit keeps what it sends and gets: a folder that every machine sees, so no bucket's working folder."""
    return site.data_root / FOLDER if site.address is None else site.project / FOLDER / site.data_root.name


def name_of(data_root: Path) -> str:
    """The name of a study's jobs: equal for equal data folders, on every machine that sees them."""
    return f"gemma-alignment-{hashlib.sha256(str(data_root.resolve()).encode()).hexdigest()[:12]}"


def check(settings: ClusterParameters, data_root: Path) -> None:
    """Refuse what SLURM would refuse, and jobs of an earlier study that still run in the folder.

    Raises:
        UserError: with what is missing, or SLURM's own words.
    """
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise missing_extra("slurm", data_root) from error
    for command in ("sbatch", "srun", "squeue", "scancel"):
        if shutil.which(command) is None:
            raise UserError(f"--engine slurm: there is no {command} here; start the study on a machine of the cluster")
    asked = [f"--{key.replace('_', '-')}={value}" for key, value in flags(settings).items()]
    _ask("sbatch", "--test-only", *asked, "--wrap=true")
    left = Queue(name_of(data_root)).look()
    if going := sorted(one for one, state in left.items() if state in (*QUEUED, *AT_WORK)):
        arrays = sorted({one.partition("_")[0] for one in going})
        raise UserError(
            f"jobs of an earlier study in {data_root} are still with SLURM: {', '.join(going)}. "
            f"Wait for them, or end them by: scancel {' '.join(arrays)}"
        )


def flags(settings: ClusterParameters) -> dict[str, Any]:
    """What every job asks for, in ``sbatch``'s own words with _ for -."""
    slurm = settings.slurm
    asked = {
        "time": slurm.time_min,
        "cpus_per_task": settings.num_cpus,
        "gpus_per_node": settings.num_gpus or None,
        "mem": None if settings.memory_gb is None else f"{round(settings.memory_gb * 1024)}MB",
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
    }
    return {key: value for key, value in asked.items() if value is not None}


def _ask(*words: str) -> str:
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
    _states: Mapping[str, str] = field(default_factory=dict)
    _looked: float = float("-inf")
    _warned: bool = False

    def look(self) -> Mapping[str, str]:
        """Job -> state, of the present and of those that ended minutes ago.

        Raises:
            UserError: when SLURM does not answer.
        """
        text = _ask("squeue", f"--name={self.name}", "--array", "--states=all", "--noheader", "--format=%i|%T")
        lines = (line.strip().partition("|") for line in text.splitlines() if line.strip())
        return {job: state for job, _, state in lines}

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

    attempt: Attempt
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
            self._outcome = Outcome(LOST, f"job {self.handle.job_id} left no result: SLURM says {self._said()}")
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
        """Whether the record came after the job was handed over."""
        return is_of(self.attempt, record)

    def _result(self) -> Outcome:
        try:
            return Outcome(*self.handle.result())
        except Exception as error:  # what the job raised, in submitit's words; or a file that cannot be read
            return Outcome(LOST, f"job {self.handle.job_id}: {(str(error).strip() or repr(error)).splitlines()[-1]}")

    def _has_vanished(self) -> bool:
        state = self.queue.state(self.handle.job_id)
        if state in QUEUED or state in AT_WORK:
            self._over_since = None
            return False
        self._over_since = self._over_since or time.monotonic()
        return self._ended or time.monotonic() - self._over_since >= SETTLED

    def _said(self) -> str:
        text = (self.handle.stderr() or "").strip() or (self.handle.stdout() or "").strip()
        last = text.splitlines()[-1:] or ["nothing"]
        return f"{self.queue.state(self.handle.job_id) or 'nothing of it any more'} ({last[0]})"


@dataclass(frozen=True)
class Slurm:
    """Job arrays, one a phase of the study: preparation, arms, evaluation with report."""

    site: Site
    settings: ClusterParameters

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    def drive(
        self, children: Sequence[Child], workers: int | None, variables: Mapping[str, str]
    ) -> Iterator[Child | None]:
        """Submit all of them at once; SLURM runs at most ``workers`` at a time, or as many as have a place."""
        if children:
            self._submit(children, workers or len(children), variables)
        return drive(children, max(1, len(children)), lambda child, place: None)

    def stop(self, children: Sequence[Child]) -> None:
        """Take the jobs away."""
        stop(children)

    def _submit(self, children: Sequence[Child], workers: int, variables: Mapping[str, str]) -> None:
        import submitit

        executor = submitit.SlurmExecutor(exchange(self.site), max_num_timeout=self.settings.retries)
        name = name_of(self.site.data_root)
        executor.update_parameters(
            job_name=name, array_parallelism=workers, stderr_to_stdout=True, signal_delay_s=90,
            setup=list(self.settings.slurm.setup), additional_parameters={"requeue": True}, **flags(self.settings),
        )  # fmt: skip
        attempts = [attempt_of(child, self.site, {}) for child in children]
        with _environment(variables):  # a job gets the environment of sbatch, and no file holds it
            try:
                handles = executor.submit_array([Queued(attempt) for attempt in attempts])
            except submitit.core.utils.FailedJobError as error:
                raise UserError(f"SLURM refuses the jobs: {error}") from error
        queue = Queue(name)
        for child, attempt, handle in zip(children, attempts, handles, strict=True):
            child.process = Job(attempt, handle, queue)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
