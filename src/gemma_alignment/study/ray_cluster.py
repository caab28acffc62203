"""The engine on a Ray cluster: a run is a task, and Ray gives it a machine, another one where the first is lost."""

import logging
import signal
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from gemma_alignment.errors import UserError, brief
from gemma_alignment.fingerprints import Record
from gemma_alignment.parameters.cluster import ClusterParameters
from gemma_alignment.study.attempt import Attempt
from gemma_alignment.study.engine import Site
from gemma_alignment.study.heartbeat import LOOK
from gemma_alignment.study.machine import Outcome, Premises, Probe
from gemma_alignment.study.orphans import settle_study
from gemma_alignment.study.plan import Plan, Run
from gemma_alignment.study.processes import Child, drive, stop
from gemma_alignment.study.remote import (
    LOST,
    attempt_of,
    is_cut_off,
    last_line,
    missing_extra,
    perform,
    refuse_machines,
    waited_for,
)

AUTO = "auto"
"""Address of the cluster that this machine belongs to."""
ANSWER = 10.0
"""Seconds that the head of a cluster has to take a connection."""
LOOKED = 300.0
"""Seconds that the nodes have to look around; one that is new starts a process for it."""
CARRIED = (
    "AWS_", "AZURE_", "DO_NOT_TRACK", "FSSPEC_", "GEMMA_ALIGNMENT_", "GOOGLE_", "HF_", "KEDRO_", "MALLOC_", "MLFLOW_",
    "MKL_NUM_THREADS", "NUMEXPR_NUM_THREADS", "OMP_NUM_THREADS", "OPENAI_", "OPENBLAS_NUM_THREADS",
    "PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONWARNINGS",
    "TOKENIZERS_PARALLELISM", "COLUMNS",
)  # fmt: skip
"""How the variables begin that a run takes along from the study's machine; all others are those of its own machine."""


def carried(variables: Mapping[str, str]) -> dict[str, str]:
    """Those of ``variables`` that mean the same on every machine."""
    return {name: value for name, value in variables.items() if name.startswith(CARRIED)}


def connect(settings: ClusterParameters, address: str | None, data_root: Path) -> None:
    """Join the cluster at ``address``, without one that of this machine, which is started where there is none.

    Raises:
        UserError: for one that does not answer, has other versions, or no node with what a run asks for.
    """
    try:
        import ray
    except ImportError as error:
        raise missing_extra("ray", data_root) from error
    if address is not None and address != AUTO:
        _check_reachable(address)
    try:
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False)
    except (ConnectionError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())  # both versions stand on lines of their own
        cure = "; install the same on both" if "ersion mismatch" in said else ""
        raise UserError(f"--engine ray: no cluster at {address or 'this machine'}: {said}{cure}") from error
    _check_resources(settings, [node for node in ray.nodes() if node["Alive"]])


def _check_reachable(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"--address {address}: expected HOST:PORT of the cluster's head, or {AUTO}")
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER).close()
    except (OSError, OverflowError) as error:
        raise UserError(
            f"--address {address} does not answer ({error}). `ray start --head` on that machine prints its address."
        ) from error


def _check_resources(settings: ClusterParameters, nodes: Sequence[Mapping[str, Any]]) -> None:
    """Ray itself would let the runs wait for ever."""
    if any(has_room(settings, node) for node in nodes):
        return
    asked = resources(settings)
    has = "; ".join(
        ", ".join(f"{node['Resources'].get(name, 0):g} {name}" for name in asked) for node in nodes
    )
    wants = ", ".join(f"{amount:g} {name}" for name, amount in asked.items())
    raise UserError(f"a run asks for {wants} (study.cluster), and no node of the Ray cluster has that; there is: {has}")


def has_room(settings: ClusterParameters, node: Mapping[str, Any]) -> bool:
    """Whether a node could do a run, were it idle."""
    return all(node["Resources"].get(name, 0) >= amount for name, amount in resources(settings).items())


def resources(settings: ClusterParameters) -> dict[str, float]:
    """What a run asks for, in Ray's names; memory in bytes."""
    memory = {} if settings.memory_gb is None else {"memory": settings.memory_gb * 2**30}
    return {"CPU": settings.num_cpus, "GPU": settings.num_gpus, **memory}


@dataclass
class Task:
    """One task, as the process of a child."""

    attempt: Attempt
    reference: Any
    """Of Ray, to its outcome."""
    log: tuple[int, int] | None
    """What was known of the log when it was handed over: the first thing that an attempt does is to touch it."""
    _outcome: Outcome | None = None
    _looked: float = float("-inf")
    _is_lost: bool = False

    @property
    def is_waiting(self) -> bool:
        """Whether no worker has begun it, or the one that had was lost: Ray then queues it anew, and says nothing."""
        if self.log == trace(self.attempt.log):
            return True
        if time.monotonic() - self._looked >= LOOK:
            self._looked, self._is_lost = time.monotonic(), is_cut_off(self.attempt)
        return self._is_lost

    @property
    def word(self) -> str | None:
        """What it, or Ray, said of its end."""
        return None if self._outcome is None else self._outcome.word

    def poll(self) -> int | None:
        """Its exit status: that of the run."""
        import ray

        if self._outcome is None and ray.wait([self.reference], timeout=0)[0]:
            try:
                self._outcome = Outcome(*ray.get(self.reference))
            except ray.exceptions.RayError as error:
                self._outcome = Outcome(LOST, f"Ray: {brief(error)}")
        return None if self._outcome is None else self._outcome.code

    def wait(self) -> int:
        """Its exit status; a cluster that does not say in half a minute that it is over is not waited for."""
        if (code := waited_for(self.poll)) is None:
            self._outcome = Outcome(LOST, "the task may still run: Ray did not end it")
        return LOST if code is None else code

    def signal(self, number: signal.Signals) -> None:
        """Let Ray interrupt it; SIGKILL ends its worker, and with that the run."""
        import ray

        if self.poll() is None:
            ray.cancel(self.reference, force=number == signal.SIGKILL)

    def wrote(self, record: Record) -> bool:
        """Whether the record is of this task."""
        return self.attempt.wrote(record)


def _answer(reference: Any, name: str) -> Outcome:
    """What a node says of itself; what Ray says where it cannot."""
    import ray

    try:
        return Outcome(*ray.get(reference, timeout=0))
    except ray.exceptions.GetTimeoutError:
        return Outcome(LOST, f"{name}: it did not answer in {LOOKED:.0f} seconds")
    except ray.exceptions.RayTaskError as error:  # what the node could not even load
        return Outcome(LOST, f"{name}: {last_line(error)}; install the same packages there")
    except ray.exceptions.RayError as error:
        return Outcome(LOST, f"{name}: {last_line(error)}")


def trace(log: Path) -> tuple[int, int] | None:
    """Size and time of a log, None where there is none."""
    try:
        found = log.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns


@dataclass(frozen=True)
class Ray:
    """Tasks of one cluster: Ray places them, ``workers`` at most at a time, without it as many as have a place."""

    site: Site
    settings: ClusterParameters

    @cached_property
    def premises(self) -> Premises:
        """What the machines must have."""
        return Premises.here(self.site, "ray")

    def check(self, plan: Plan) -> None:
        """Let every node that has room for a run look around, and end what an earlier study left.

        Ray ends the tasks of a study whose process is gone: they are waited for, and none is gone on with.
        """
        refuse_machines(self._missing())
        if self.site.address is None:  # in a bucket their leases say who lives
            settle_study(plan.runs, self.site.data_root)

    def has(self, run: Run) -> bool:
        """None."""
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the cluster: what still ran would end with it."""
        import ray

        ray.shutdown()

    def drive(
        self, children: Sequence[Child], workers: int | None, variables: Mapping[str, str]
    ) -> Iterator[Child | None]:
        """Hand over each as a task."""

        def start(child: Child, place: int) -> None:
            self._submit(child, carried(variables))

        return drive(children, workers or max(1, len(children)), start)

    def stop(self, children: Sequence[Child]) -> None:
        """Cancel the tasks."""
        stop(children)

    def _missing(self) -> Iterator[str | None]:
        """What each node lacks, None for one that lacks nothing; all look at the same time."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        tasks = []
        for node in (one for one in ray.nodes() if one["Alive"] and has_room(self.settings, one)):
            there = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            task = ray.remote(perform).options(num_cpus=0, scheduling_strategy=there, name="probe")
            probe = Probe(self.premises)
            tasks.append((node, probe, task.remote(probe)))
        ray.wait([reference for *_, reference in tasks], num_returns=len(tasks), timeout=LOOKED)
        for node, probe, reference in tasks:
            name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            yield probe.missing(_answer(reference, name), name)

    def _submit(self, child: Child, variables: Mapping[str, str]) -> None:
        import ray

        attempt = attempt_of(child, self.premises, variables)
        asked = resources(self.settings)
        memory = {"memory": int(asked["memory"])} if "memory" in asked else {}
        task = ray.remote(perform).options(
            num_cpus=asked["CPU"], num_gpus=asked["GPU"], **memory, max_retries=self.settings.retries,
            retry_exceptions=False, scheduling_strategy="SPREAD", name=child.run.label,
        )  # fmt: skip
        log = trace(attempt.log)
        child.process = Task(attempt, task.remote(attempt), log)
