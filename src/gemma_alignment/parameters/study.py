"""The matrix that ``kedro study`` runs."""

from dataclasses import dataclass

from gemma_alignment.parameters.cluster import ClusterParameters


@dataclass(frozen=True)
class AblationParameters:
    """The values of ``--ablate`` for settings that are numbers; those that are words have a fixed set."""

    clip_epsilon_high: tuple[float, ...]
    """Upper sides of the clip, wider than ``clip_epsilon``."""
    update_epochs: tuple[int, ...]
    """Passes over an iteration's experience."""


@dataclass(frozen=True)
class StudyParameters:
    """Methods × seeds, what ``--quick`` changes, and the values of ablations."""

    methods: tuple[str, ...]
    """The arms."""
    seeds: tuple[int, ...]
    """One run of each arm a seed."""
    quick: dict[str, bool | int | float | str]
    """Dotted parameters of ``--quick``, as after ``--params``; a ``data_root`` of its own keeps it apart."""
    quick_seeds: tuple[int, ...]
    """The seeds of ``--quick``."""
    silence_report_s: float
    """Seconds after which a process that writes nothing is reported."""
    silence_limit_s: float | None
    """Seconds after which it is stopped, evaluation and report excepted; null: never."""
    ablations: AblationParameters
    """Values of ``--ablate`` that no type fixes."""
    cluster: ClusterParameters
    """What a run asks of a cluster."""

    def __post_init__(self) -> None:
        for name in ("methods", "seeds", "quick_seeds"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name} must not be empty")
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names one twice: {', '.join(map(str, values))}")
        if self.silence_report_s <= 0 or (self.silence_limit_s is not None and self.silence_limit_s <= 0):
            raise ValueError("silence_report_s and silence_limit_s must be above 0 (silence_limit_s: null for never)")
