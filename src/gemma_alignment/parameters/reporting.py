"""What can be set about the report, and the protocol fixed before the runs (``reporting``, ``protocol``)."""

from dataclasses import dataclass

from gemma_alignment.stages import unknown_method


@dataclass(frozen=True)
class ProtocolParameters:
    """What decides the comparison; its fingerprint is printed in the report."""

    method_a: str
    """The method whose advantage counts as positive."""
    method_b: str
    """The method it is compared with."""
    seeds: tuple[int, ...]
    """The seeds planned for each method: the study ends when all of them have run, no earlier or later."""
    confidence: float
    """Confidence of every interval; 1 - confidence is the level of every test."""
    power: float
    """Power for which the least detectable effect and the number of seeds are given."""
    margin: float
    """The least departure of the head-to-head win rate, the primary outcome, from 1/2 that matters."""
    effect_size_metric: str
    """The metric whose Cohen's d is the headline effect size."""
    effect_size_margin: float
    """The least difference of that metric that matters, in its own unit; read when nothing was judged."""
    secondary_metrics: tuple[str, ...]
    """One family, adjusted by Holm's method."""

    @property
    def alpha(self) -> float:
        """The level of every test: 1 - confidence, without the rounding of the subtraction."""
        return round(1.0 - self.confidence, 12)

    def __post_init__(self) -> None:
        """Refuse a protocol that cannot decide anything."""
        for name in (self.method_a, self.method_b):
            if wrong := unknown_method(name):
                raise ValueError(wrong)
        if self.method_a == self.method_b:
            raise ValueError(f"method_a and method_b are both {self.method_a}: name two methods")
        if not 0.0 < self.confidence < 1.0:
            raise ValueError(f"confidence must lie between 0 and 1, got {self.confidence}")
        if not 1.0 - self.confidence < self.power < 1.0:
            raise ValueError(f"power must lie between 1 - confidence and 1, got {self.power}")
        if not 0.0 <= self.margin < 0.5:
            raise ValueError(f"margin is a departure from one half, 0 to 0.5, got {self.margin}")
        if self.effect_size_margin < 0.0:
            raise ValueError(f"effect_size_margin cannot be negative, got {self.effect_size_margin}")
        if not self.seeds or len(set(self.seeds)) != len(self.seeds):
            raise ValueError(f"seeds must be distinct and at least one, got {list(self.seeds)}")


@dataclass(frozen=True)
class ReportingParameters:
    """How much the report shows."""

    title: str
    """Heading of the report."""
    bootstrap_draws: int
    """Draws of the bootstrap over prompts, and of a permutation test that is too large to enumerate."""
    bootstrap_seed: int
    """Seed of the generator of those draws."""
    answers_shown: int
    """Prompts in the table of answers, the first ones in file order."""
    answer_characters: int
    """Where an answer in that table is cut."""
    points_shown: int
    """Most points a method in a scatter plot, evenly spaced over its answers."""

    def __post_init__(self) -> None:
        """Refuse counts that show nothing."""
        for name in ("bootstrap_draws", "answer_characters", "points_shown"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.answers_shown < 0:
            raise ValueError(f"answers_shown cannot be negative, got {self.answers_shown}")
