"""Where the runs of a study are executed: on this machine, or by a scheduler that somebody else wrote.

The plan knows no scheduler, and the study knows an engine by four verbs.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, Self

from gemma_alignment.errors import UserError
from gemma_alignment.parameters.cluster import ClusterParameters
from gemma_alignment.study.plan import Plan, Run
from gemma_alignment.study.processes import Child, default_workers, drive, may_use_gpu, shares, stop, surroundings
from gemma_alignment.study.warm import Warm


class Engine(Protocol):
    """Runs the children of a study, wherever; entered for as long as the study goes on."""

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: object) -> None: ...

    def check(self, plan: Plan) -> None:
        """Look at what the runs would get, and at what an earlier study left, before anything is spent.

        Raises:
            UserError: for a machine that could not do them, and for what still runs and cannot be waited for.
        """
        ...

    def has(self, run: Run) -> bool:
        """Whether an earlier study handed the run over and it is not over yet: :meth:`drive` waits for that one."""
        ...

    def drive(
        self, children: Sequence[Child], workers: int | None, variables: Mapping[str, str]
    ) -> Iterator[Child | None]:
        """Run ``children`` in order, ``workers`` at a time, under variables; yields each one that ended, or a tick."""
        ...

    def stop(self, children: Sequence[Child]) -> None:
        """End what still runs; afterwards nothing of it does."""
        ...


@dataclass(frozen=True)
class Site:
    """What an engine needs to know of a study."""

    project: Path
    data_root: Path
    device: str
    """``runtime.device``: on a GPU of this machine, runs take turns."""
    threads: int
    """``runtime.threads`` of each of a run's processes."""
    processes: int = 1
    """That train one policy."""
    address: str | None = None
    """Of the bucket that the data folder is the working folder of."""
    mark: str | None = None
    """Of the study's lease on that."""


class Local:
    """Processes of this machine: as many runs at a time as it has cores for, one where they share a GPU.

    Workers that fill this machine, each with its threads, keep to cores of their own.
    """

    def __init__(self, site: Site) -> None:
        self._site = site
        self._warm = Warm(site.project, surroundings(), not may_use_gpu(site.device))

    def __enter__(self) -> Self:
        self._warm.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._warm.__exit__(*error)

    def check(self, plan: Plan) -> None:
        """This machine has what it has: each run looks when it starts."""

    def has(self, run: Run) -> bool:
        """None: a process that outlives its study is named by its record, and refused."""
        return False

    def drive(
        self, children: Sequence[Child], workers: int | None, variables: Mapping[str, str]
    ) -> Iterator[Child | None]:
        """Start each as a process."""
        processes = self._site.processes
        workers = workers or max(1, default_workers(self._site.device) // processes)
        places = shares(workers, self._site.threads * processes)

        def start(child: Child, place: int) -> None:
            child.start(self._site.project, variables, self._warm.start, places[place])

        return drive(children, workers, start)

    def stop(self, children: Sequence[Child]) -> None:
        """SIGTERM, and after half a minute SIGKILL."""
        stop(children)


def engine(
    name: str, settings: ClusterParameters, data_root: Path, address: str | None = None, processes: int = 1,
    resume: bool = False, bucket: str | None = None,
) -> Callable[[Site], Engine]:  # fmt: skip
    """The engine of this name, for whatever site; a cluster is asked whether it would do what is asked.

    ``bucket`` is the address of that which the data folder is a copy of. With ``resume``, in a folder, jobs of an
    earlier study that the cluster still has are waited for, not refused.

    Raises:
        UserError: before anything runs, for what is missing or would be refused.
    """
    if address is not None and name != "ray":
        raise UserError(f"--address is the head of a Ray cluster: give --engine ray with it, not {name}")
    places = settings.num_gpus or settings.num_cpus
    if name != "local" and places < processes:
        raise UserError(
            f"--processes-per-run {processes} needs a GPU, or without GPUs a core, for each, but a run asks "
            f"for {settings.num_gpus} GPUs and {settings.num_cpus} cores: see study.cluster"
        )
    if name == "ray":
        from gemma_alignment.study import ray_cluster

        ray_cluster.connect(settings, address, data_root)
        return partial(ray_cluster.Ray, settings=settings)
    if name == "slurm":
        from gemma_alignment.study import slurm

        left = slurm.check(settings, data_root, resume, bucket)
        return partial(slurm.Slurm, settings=settings, left=left)
    return Local
