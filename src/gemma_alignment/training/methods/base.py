"""What every method is: a frozen dataclass of hyperparameters with two short pure functions."""

from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol

import torch
from torch import Tensor

from gemma_alignment.objectives.advantages import group_zscore
from gemma_alignment.objectives.kl import k1, k3
from gemma_alignment.objectives.losses import clipped_surrogate
from gemma_alignment.objectives.masking import whiten
from gemma_alignment.objectives.reductions import REDUCTIONS
from gemma_alignment.schemas import Credit, Experience, Minibatch, Normalizer

Stats = dict[str, Tensor]


class Method(Protocol):
    """What the loop asks of a method."""

    name: ClassVar[str]
    needs_critic: ClassVar[bool]
    group_size: int
    update_epochs: int
    normalize_scores: str

    def assign_credit(self, experience: Experience, kl_coef: float) -> Credit:
        """Difference 1: scores to advantages."""

    def policy_loss(self, logprobs: Tensor, micro: Minibatch, normalizer: Normalizer) -> tuple[Tensor, Stats]:
        """Difference 2: the policy's loss on a micro-batch, and its share of the step's statistics."""


@dataclass(frozen=True)
class Settings:
    """The settings that belong to any method, so that each difference can be studied alone."""

    group_size: int
    """K: responses sampled for each prompt."""
    kl_placement: Literal["token_reward", "sequence_score", "loss", "none"]
    """Where KL to the reference enters: k1 per token, Σ k1 per sequence, k3 in the loss, or nowhere."""
    normalize_advantages: Literal["none", "group_std", "whiten"]
    """Nothing, the group's sd, or mean 0 and variance 1 over the iteration's tokens."""
    normalize_scores: Literal["ema", "fixed", "none"]
    """Moving statistics, the statistics at the start, or raw scores."""
    reduction: Literal["token_mean", "sequence_mean", "constant_length"]
    """How per-token losses become one number."""
    clip_epsilon: float
    """ε of the clipped surrogate."""
    clip_epsilon_high: float | None
    """A wider upper side of the clip; the same as ε when null."""
    update_epochs: int
    """Passes over an iteration's responses."""

    def __post_init__(self) -> None:
        if self.group_size < 1 or self.update_epochs < 1:
            raise ValueError(f"group_size {self.group_size} and update_epochs {self.update_epochs} must be at least 1")
        if not 0 < self.clip_epsilon < 1:
            raise ValueError(f"clip_epsilon is {self.clip_epsilon}, but must lie between 0 and 1")
        if self.normalize_advantages == "group_std" and self.group_size < 2:
            raise ValueError("normalize_advantages: group_std needs a group_size of at least 2")

    def policy_loss(self, logprobs: Tensor, micro: Minibatch, normalizer: Normalizer) -> tuple[Tensor, Stats]:
        """Clipped surrogate, plus kl_coef · k3 where KL enters in the loss, reduced over the step."""
        per_token = clipped_surrogate(
            logprobs, micro.old_logprobs, micro.advantages, self.clip_epsilon, self.clip_epsilon_high
        )
        if self.kl_placement == "loss":
            per_token = per_token + micro.kl_coef * k3(logprobs, micro.ref_logprobs)
        loss = REDUCTIONS[self.reduction](per_token, micro.response_mask, normalizer)
        return loss, surrogate_stats(logprobs, micro, normalizer, self.clip_epsilon, self.clip_epsilon_high)

    def sequence_scores(self, experience: Experience, kl_coef: float) -> Tensor:
        """Scores (B,), minus kl_coef · Σ_t k1 where KL enters in the sequence's score."""
        if self.kl_placement != "sequence_score":
            return experience.scores
        divergence = k1(experience.old_logprobs, experience.ref_logprobs) * experience.response_mask
        return experience.scores - kl_coef * divergence.sum(1)

    def spread(self, per_sequence: Tensor, experience: Experience) -> Credit:
        """The same credit for every token of a response, scaled as configured."""
        if self.normalize_advantages == "group_std":
            per_sequence = group_zscore(per_sequence, experience.group_size)
        advantages = per_sequence[:, None] * experience.response_mask
        if self.normalize_advantages == "whiten":
            advantages = whiten(advantages, experience.response_mask)
        return Credit(advantages, None)


@dataclass(frozen=True)
class GroupSettings(Settings):
    """Settings of the critic-free methods, with what they cannot do refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size < 2:
            raise ValueError(
                f"group_size is {self.group_size}: the credit of a group of one is always 0, "
                "so nothing would be learned; use at least 2"
            )
        if self.kl_placement == "token_reward":
            raise ValueError(
                "kl_placement: token_reward needs a critic to spread it over tokens; "
                "the critic-free counterpart is sequence_score"
            )


@torch.no_grad()
def surrogate_stats(
    logprobs: Tensor, micro: Minibatch, normalizer: Normalizer, low: float, high: float | None
) -> Stats:
    """A micro-batch's share of the step's token means: they add up over micro-batches.

    ``approx_kl`` is k3 of the new against the old policy, ρ − 1 − log ρ.
    """
    log_ratio = (logprobs - micro.old_logprobs).masked_fill(~micro.response_mask, 0.0)
    ratio = log_ratio.exp()
    clipped = (ratio < 1 - low) | (ratio > 1 + (low if high is None else high))
    shares = {
        "approx_kl": torch.expm1(log_ratio) - log_ratio,
        "clip_fraction": clipped.float(),
        "ratio_mean": ratio,
    }
    return {key: (value * micro.response_mask).sum() / normalizer.tokens for key, value in shares.items()}
