"""Normalisation of the reward model's scores, one code for every arm."""

from torch import Tensor

EPSILON = 1e-8


class EMANormalizer:
    """Exponential moving mean and variance; a batch is normalised by the statistics before it.

    mean ← d · mean + (1 − d) · m,  variance ← d · variance + (1 − d) · mean_i((s_i − mean_old)²),
    with d the decay and m the batch mean. It starts at the statistics saved with the reward model,
    so no bias correction is needed, and no batch sees its own statistics.
    """

    def __init__(self, mean: float, variance: float, decay: float):
        if variance <= 0 or not 0 <= decay < 1:
            raise ValueError(f"variance {variance} must be above 0 and decay {decay} in [0, 1)")
        self.mean, self.variance, self.decay = mean, variance, decay

    def normalize(self, scores: Tensor) -> Tensor:
        """(s − mean) / sqrt(variance + ε), shape kept."""
        return (scores - self.mean) / (self.variance + EPSILON) ** 0.5

    def update(self, scores: Tensor) -> None:
        """Take in an iteration's scores, once, whole."""
        values = scores.double()
        spread = float((values - self.mean).square().mean())
        self.mean = self.decay * self.mean + (1 - self.decay) * float(values.mean())
        self.variance = self.decay * self.variance + (1 - self.decay) * spread

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.mean, self.variance = state["mean"], state["variance"]


class FixedNormalizer(EMANormalizer):
    """The statistics at the start, for good."""

    def update(self, scores: Tensor) -> None:
        """Nothing moves."""


def score_normalizer(mode: str, mean: float, variance: float, decay: float) -> EMANormalizer:
    """The normaliser of a ``normalize_scores`` setting: ``ema``, ``fixed`` or ``none``."""
    if mode == "ema":
        return EMANormalizer(mean, variance, decay)
    return FixedNormalizer(mean, variance, decay) if mode == "fixed" else FixedNormalizer(0.0, 1.0 - EPSILON, decay)
