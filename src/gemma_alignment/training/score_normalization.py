"""One scale for the scores of every arm, held while the policy and with it the scores drift."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from gemma_alignment.errors import UserError

EPSILON = 1e-8
"""Added to the variance: scores that stopped varying are not divided by 0."""


class EMANormalizer:
    """Normalise by exponential moving statistics: (s − mean) / √(variance + 1e-8).

    A batch is normalised with the statistics from before it, then taken in once, whole. With the batch's
    mean m and population variance v, and d = ``decay``:

        variance <- d · variance + (1 − d) · v + d (1 − d) · (m − mean)²
        mean     <- d · mean + (1 − d) · m

    which are the moments of the mixture, d of the past and 1 − d of the batch: the spread of the batch's
    mean about the moving one is part of the variance. It starts at the mean and variance saved with
    the reward model, so there is no start-up bias to correct.

    Args:
        mean: of the scores at the start.
        variance: of the scores at the start.
        decay: weight of the past in an update, in [0, 1).

    Raises:
        ValueError: for values without meaning.
    """

    def __init__(self, mean: float, variance: float, decay: float):
        if variance <= 0 or not 0 <= decay < 1:
            raise ValueError(f"variance {variance} must be above 0 and decay {decay} in [0, 1)")
        self.mean, self.variance, self.decay = float(mean), float(variance), float(decay)

    def normalize(self, scores: Tensor) -> Tensor:
        """Scores (B,) in units of the statistics so far; the statistics do not move."""
        return (scores - self.mean) / (self.variance + EPSILON) ** 0.5

    def update(self, scores: Tensor) -> None:
        """Take in the raw scores of a whole iteration.

        Raises:
            UserError: when one is not finite: the statistics would be lost for good.
        """
        batch = scores.detach().to(torch.float64)
        if not len(batch) or not bool(torch.isfinite(batch).all()):
            raise UserError(
                f"{int((~torch.isfinite(batch)).sum())} of {len(batch)} scores are not finite: the moving "
                "statistics were not changed. Look at the reward model, and at the responses it was given."
            )
        d, mean = self.decay, float(batch.mean())
        shift = d * (1 - d) * (mean - self.mean) ** 2
        self.variance = d * self.variance + (1 - d) * float(batch.var(correction=0)) + shift
        self.mean = d * self.mean + (1 - d) * mean

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from where ``state_dict`` was taken."""
        self.mean, self.variance = float(state["mean"]), float(state["variance"])


class FixedNormalizer(EMANormalizer):
    """The statistics of the start, for the whole training: what ``fixed`` means."""

    def update(self, scores: Tensor) -> None:
        """Nothing moves."""


class RawNormalizer(EMANormalizer):
    """Scores in the unit of the reward model's own output: what ``none`` means.

    Scores come in units of its fixed normaliser, whose mean and variance this one is given: it undoes them.
    """

    def normalize(self, scores: Tensor) -> Tensor:
        """s · sd + mean."""
        return scores * self.variance**0.5 + self.mean

    def update(self, scores: Tensor) -> None:
        """Nothing moves."""


NORMALIZERS: dict[str, type[EMANormalizer]] = {
    "ema": EMANormalizer, "fixed": FixedNormalizer, "none": RawNormalizer,
}  # fmt: skip


def score_normalizer(
    mode: Literal["ema", "fixed", "none"], mean: float, variance: float, decay: float
) -> EMANormalizer:
    """The normaliser of a method's ``normalize_scores``.

    ``ema`` and ``fixed`` start at ``mean`` and ``variance`` of the scores that come in; ``none`` takes them as those of
    the fixed normaliser that it undoes.
    """
    return NORMALIZERS[mode](mean, variance, decay)
