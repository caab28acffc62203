"""What a run asks of a cluster: read by ``kedro study --engine``, never by a run itself."""

from dataclasses import dataclass

ENGINES = ("local", "ray", "slurm")
"""Where the runs of a study can be executed."""


@dataclass(frozen=True)
class SlurmParameters:
    """What SLURM is asked for beyond the resources; null leaves it to the cluster."""

    time_min: int
    """Minutes of a job; a run that needs more is queued again and goes on from its last checkpoint."""
    partition: str | None
    """Where the jobs queue."""
    account: str | None
    """Who pays."""
    qos: str | None
    """Quality of service."""
    setup: tuple[str, ...]
    """Lines of shell before each job, such as ``module load cuda``."""

    def __post_init__(self) -> None:
        if self.time_min < 1:
            raise ValueError(f"time_min must be at least 1, got {self.time_min}")


@dataclass(frozen=True)
class ClusterParameters:
    """The resources of one run on a cluster."""

    num_cpus: int
    """Cores."""
    num_gpus: int
    """GPUs."""
    memory_gb: float | None
    """Main memory; null: what the cluster gives unasked."""
    retries: int
    """How often a run is started again: on Ray after its worker or node was lost, on SLURM after its time was up.

    What SLURM loses or pre-empts it queues again without counting. A run that fails by itself, or whose machine lacks
    something, is not started again.
    """
    slurm: SlurmParameters
    """For ``--engine slurm`` alone."""

    def __post_init__(self) -> None:
        if self.num_cpus < 1 or self.num_gpus < 0 or self.retries < 0:
            raise ValueError("num_cpus must be at least 1, num_gpus and retries at least 0")
        if self.memory_gb is not None and self.memory_gb <= 0:
            raise ValueError(f"memory_gb must be above 0 (null: unasked), got {self.memory_gb}")
