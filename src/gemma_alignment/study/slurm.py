"""The engine on a SLURM cluster, by way of submitit: the runs are a job array, and SLURM says when each has a place."""

import hashlib
import logging
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from gemma_alignment.errors import UserError
from gemma_alignment.parameters.cluster import ClusterParameters
from gemma_alignment.study.engine import Site
from gemma_alignment.study.machine import Outcome, Premises, Probe
from gemma_alignment.study.orphans import settle_study
from gemma_alignment.study.plan import Plan, Run
from gemma_alignment.study.processes import TICK, Child, drive, stop
from gemma_alignment.study.remote import attempt_of, missing_extra, refuse_machines
from gemma_alignment.study.slurm_jobs import (
    AT_WORK,
    FOLDER,
    QUEUED,
    Job,
    Left,
    Queue,
    Queued,
    ask,
    end_by,
    left_over,
)

logger = logging.getLogger(__name__)

PROBE_MIN = 5
"""Minutes of the job that looks around."""


def exchange(site: Site) -> Path:
    """Where submitit keeps what it sends and gets: a folder that every machine sees, so no bucket's working folder."""
    return site.data_root / FOLDER if site.address is None else site.project / FOLDER / site.data_root.name


def name_of(data_root: Path, bucket: str | None = None) -> str:
    """The name of a study's jobs: equal for equal data folders, or buckets, on every machine that sees them."""
    place = bucket or str(data_root.resolve())  # a bucket's working folder is another one on each machine
    return f"gemma-alignment-{hashlib.sha256(place.encode()).hexdigest()[:12]}"


def check(
    settings: ClusterParameters, data_root: Path, resume: bool = False, bucket: str | None = None
) -> list[Left]:
    """Refuse what SLURM would refuse, and jobs of an earlier study that still run in the folder.

    Returns: with ``resume`` those jobs, which the study goes on with.

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
    ask("sbatch", "--test-only", *asked, "--wrap=true")
    states = Queue(name_of(data_root, bucket)).look()
    going = sorted(job for job, state in states.items() if state in (*QUEUED, *AT_WORK))
    if going and not resume:
        raise UserError(
            f"jobs of an earlier study in {bucket or data_root} are still with SLURM: {', '.join(going)}. Go on with "
            f"them by --resume (not where the data are in a bucket), {end_by(going)}"
        )
    return left_over(going, data_root)


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


@dataclass(frozen=True)
class Slurm:
    """Job arrays, one a phase of the study: preparation, arms, evaluation with report."""

    site: Site
    settings: ClusterParameters
    left: Sequence[Left] = ()
    """Jobs of an earlier study: it does with them what it would do with its own."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None: ...

    @property
    def name(self) -> str:
        """Of its jobs."""
        return name_of(self.site.data_root, self.site.address)

    @cached_property
    def premises(self) -> Premises:
        """What the machines must have."""
        return Premises.here(self.site, "submitit")

    def check(self, plan: Plan) -> None:
        """Let the first machine that SLURM gives look around, unless jobs are at work already, and end what is over."""
        for one in self.left:
            if one.attempt.premises.versions != self.premises.versions or not any(map(one.does, plan.runs)):
                raise UserError(
                    f"job {one.handle.job_id} of an earlier study in {self.site.data_root} ({one.attempt.run.label}) "
                    f"does something else than this one, or with other versions: {end_by([one.handle.job_id])}"
                )
        if not self.left:
            self._probe()
        if self.site.address is None:  # in a bucket their leases say who lives
            settle_study((run for run in plan.runs if not self.has(run)), self.site.data_root)

    def has(self, run: Run) -> bool:
        """Whether a job of an earlier study does it."""
        return any(one.does(run) for one in self.left)

    def drive(
        self, children: Sequence[Child], workers: int | None, variables: Mapping[str, str]
    ) -> Iterator[Child | None]:
        """Submit all of them at once; SLURM runs at most ``workers`` at a time, or as many as have a place."""
        name, own = self.name, list[Child]()
        for child in children:
            if (earlier := next((one for one in self.left if one.does(child.run)), None)) is not None:
                child.process = Job(earlier.attempt, earlier.handle, Queue(name))
            else:
                own.append(child)
        if own:
            at_most = len(own) if workers is None else max(1, workers - (len(children) - len(own)))
            self._submit(own, at_most, variables, name)
        return drive(children, max(1, len(children)), lambda child, place: None)

    def stop(self, children: Sequence[Child]) -> None:
        """Take the jobs away."""
        stop(children)

    def _submit(self, children: Sequence[Child], workers: int, variables: Mapping[str, str], name: str) -> None:
        attempts = [attempt_of(child, self.premises, {}) for child in children]
        executor = self._executor(name, array_parallelism=workers, signal_delay_s=90)
        with _environment(variables), _refused():  # a job gets the environment of sbatch, and no file holds it
            handles = executor.submit_array([Queued(attempt) for attempt in attempts])
        queue = Queue(name)
        for child, attempt, handle in zip(children, attempts, handles, strict=True):
            child.process = Job(attempt, handle, queue)

    def _executor(self, name: str, **words: Any) -> Any:
        import submitit

        executor = submitit.SlurmExecutor(exchange(self.site), max_num_timeout=self.settings.retries)
        executor.update_parameters(
            job_name=name, stderr_to_stdout=True, setup=list(self.settings.slurm.setup),
            additional_parameters={"requeue": True}, **{**flags(self.settings), **words},
        )  # fmt: skip
        return executor

    def _probe(self) -> None:
        """A job of minutes, for which there is sooner a place than for a run.

        Raises:
            UserError: with what the machine lacks.
        """
        name, probe = f"{self.name}-probe", Probe(self.premises)
        logger.info("A job looks whether the machines have what the runs need (squeue --name=%s)", name)
        with _refused():
            handle = self._executor(name, time=min(PROBE_MIN, self.settings.slurm.time_min)).submit(probe)
        job = Job(None, handle, Queue(name))
        try:
            while (code := job.poll()) is None:
                time.sleep(TICK)
        finally:
            job.signal(signal.SIGTERM)
        refuse_machines([probe.missing(Outcome(code, job.word), f"job {handle.job_id}")])


@contextmanager
def _refused() -> Iterator[None]:
    import submitit

    try:
        yield
    except submitit.core.utils.FailedJobError as error:
        raise UserError(f"SLURM refuses the jobs: {error}") from error


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
