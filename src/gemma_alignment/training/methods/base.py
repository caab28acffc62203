"""What a method is, and what all of them share: one surrogate, one penalty, one normalisation.

A method says two things: how credit is assigned to sampled responses, and which loss a micro-batch
has. Its fields are its hyperparameters. Nothing here knows a model, an optimizer or a file.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, TypeAlias

from torch import Tensor

from gemma_alignment.objectives.advantages import group_scale
from gemma_alignment.objectives.kl import k3
from gemma_alignment.objectives.losses import clipped_surrogate, probability_ratio
from gemma_alignment.objectives.masking import masked_sum, whiten
from gemma_alignment.objectives.reductions import REDUCTIONS
from gemma_alignment.objectives.rewards import penalised_scores
from gemma_alignment.schemas import Credit, Experience, Minibatch, Normalizer

Stats: TypeAlias = dict[str, Tensor]
"""Detached parts of an optimizer step's token means: they add up over its micro-batches."""


class Method(Protocol):
    """What the loop asks of a method."""

    name: ClassVar[str]
    """Its key in ``METHODS``."""
    needs_critic: ClassVar[bool]
    """Whether the loop must estimate values and train a critic (then it is a ``CriticMethod``)."""

    @property
    def group_size(self) -> int:
        """Responses sampled for each prompt."""

    @property
    def update_epochs(self) -> int:
        """Passes over an iteration's experience."""

    @property
    def normalize_scores(self) -> Literal["ema", "fixed", "none"]:
        """The mode that ``score_normalization.score_normalizer`` takes."""

    def assign_credit(self, experience: Experience, kl_coef: float) -> Credit:
        """Advantages (B, T) for what was sampled, and returns where there is a critic; no gradient."""

    def policy_loss(self, logprobs: Tensor, micro: Minibatch, normalizer: Normalizer) -> tuple[Tensor, Stats]:
        """This micro-batch's part of the step's policy loss, and statistics that add up the same way."""


class CriticMethod(Method, Protocol):
    """A method that also trains a critic: on an adapter of its own, in a forward and backward of its own."""

    def value_loss(self, values: Tensor, micro: Minibatch, normalizer: Normalizer) -> tuple[Tensor, Stats]:
        """This micro-batch's part of the step's value loss, coefficient included."""


@dataclass(frozen=True)
class MethodSettings:
    """The settings of every method, so that each difference can be studied alone."""

    group_size: int
    """Responses sampled for each prompt."""
    kl_placement: Literal["token_reward", "sequence_score", "loss", "none"]
    """Where the KL to the reference enters: k1 per token, Σ k1 in the score, k3 in the loss, nowhere."""
    normalize_advantages: Literal["none", "group_std", "whiten"]
    """Leave the credit, bring it to the unit of its group's sd, or whiten it over the batch's real tokens."""
    normalize_scores: Literal["ema", "fixed", "none"]
    """Normalise scores by moving statistics, by those at the start, or not at all."""
    reduction: Literal["token_mean", "sequence_mean", "constant_length"]
    """How the policy loss of tokens becomes one number."""
    clip_epsilon: float
    """The surrogate stops where a probability ratio leaves 1 ± this in the wanted direction."""
    clip_epsilon_high: float | None
    """A wider upper side of the clip; null: the same as the lower one."""
    update_epochs: int
    """Passes over an iteration's experience."""

    def __post_init__(self) -> None:
        for name in ("group_size", "clip_epsilon", "clip_epsilon_high", "update_epochs"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}, but must be above 0")
        if self.normalize_advantages == "group_std" and self.group_size < 2:
            raise ValueError(
                f"normalize_advantages group_std needs groups, but group_size is {self.group_size}: "
                "one response has no spread. Use whiten or none, or a group_size of at least 2."
            )

    def policy_loss(self, logprobs: Tensor, micro: Minibatch, normalizer: Normalizer) -> tuple[Tensor, Stats]:
        """The surrogate that all methods share: one code, so that the comparison is not one of copies."""
        return surrogate_loss(self, logprobs, micro, normalizer)


@dataclass(frozen=True)
class GroupSettings(MethodSettings):
    """The same without a critic: the group is the baseline. What cannot work then is refused."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group_size < 2:
            raise ValueError(
                f"group_size is {self.group_size}, but the group is the baseline: the credit of a response "
                "against itself is 0, so nothing would be learnt and nothing would say so. Use at least 2."
            )
        if self.kl_placement == "token_reward":
            raise ValueError(
                "kl_placement token_reward needs a critic to carry rewards back through the tokens. "
                "Without one the same penalty is kl_placement: sequence_score."
            )


def response_scores(settings: MethodSettings, experience: Experience, kl_coef: float) -> Tensor:
    """Scores (B,) that credit is assigned from, s − kl_coef · Σ k1 under ``sequence_score``."""
    return penalised_scores(
        experience.scores, experience.old_logprobs, experience.ref_logprobs, experience.response_mask,
        kl_coef if settings.kl_placement == "sequence_score" else 0.0,
    )  # fmt: skip


def group_credit(
    settings: MethodSettings,
    experience: Experience,
    kl_coef: float,
    baseline: Callable[[Tensor, int], Tensor],
) -> Credit:
    """Credit without a critic: one advantage for a whole response, from its score against its group.

    ``group_std`` divides by the sd of the whole group's scores, for leave-one-out credit too: the sd of
    the others alone can vanish, and the credit explode.

    Args:
        settings: those of the method.
        experience: rows in whole groups.
        kl_coef: used under ``sequence_score`` only.
        baseline: (scores (B,), group size) -> advantages (B,).
    """
    scores = response_scores(settings, experience, kl_coef)
    credit = baseline(scores, settings.group_size)
    if settings.normalize_advantages == "group_std":
        credit = credit / group_scale(scores, settings.group_size)
    advantages = credit.unsqueeze(1) * experience.response_mask
    if settings.normalize_advantages == "whiten":
        advantages = whiten(advantages, experience.response_mask)
    return Credit(advantages, returns=None)


def surrogate_loss(
    settings: MethodSettings, logprobs: Tensor, micro: Minibatch, normalizer: Normalizer
) -> tuple[Tensor, Stats]:
    """The policy loss of every method: clipped surrogate, + kl_coef · k3 under ``loss``, reduced.

    Padding is replaced before the exponential, so that what stands there reaches no gradient.

    Returns:
        The loss, and ``approx_kl`` (k3 of the new against the old policy), ``clip_fraction`` (tokens
        whose gradient the clip stops) and ``ratio_mean``, each a sum over tokens / ``normalizer.tokens``.
    """
    mask = micro.response_mask
    new, old = logprobs.masked_fill(~mask, 0.0), micro.old_logprobs.masked_fill(~mask, 0.0)
    loss = clipped_surrogate(new, old, micro.advantages, settings.clip_epsilon, settings.clip_epsilon_high)
    unclipped = -micro.advantages * probability_ratio(new, old)
    stats = {
        "approx_kl": k3(old, new),
        "clip_fraction": (loss > unclipped).to(loss.dtype),
        "ratio_mean": probability_ratio(new, old),
    }
    if settings.kl_placement == "loss":
        loss = loss + micro.kl_coef * k3(new, micro.ref_logprobs.masked_fill(~mask, 0.0))
    shares = {key: masked_sum(value.detach(), mask) / normalizer.tokens for key, value in stats.items()}
    return REDUCTIONS[settings.reduction](loss, mask, normalizer), shares
