"""The matrix that ``kedro study`` runs."""

from dataclasses import dataclass


@dataclass(frozen=True)
class StudyParameters:
    """Methods × seeds, and what ``--quick`` changes."""

    methods: tuple[str, ...]
    """The arms."""
    seeds: tuple[int, ...]
    """One run of each arm a seed."""
    quick: dict[str, bool | int | float | str]
    """Dotted parameters of ``--quick``, as after ``--params``; a ``data_root`` of its own keeps it apart."""
    quick_seeds: tuple[int, ...]
    """The seeds of ``--quick``."""

    def __post_init__(self) -> None:
        for name in ("methods", "seeds", "quick_seeds"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name} must not be empty")
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names one twice: {', '.join(map(str, values))}")
