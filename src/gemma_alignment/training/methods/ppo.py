"""PPO: a critic predicts the score from every position, GAE turns its errors into credit for each token."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gemma_alignment.objectives.advantages import gae, group_whiten
from gemma_alignment.objectives.losses import clipped_value_error
from gemma_alignment.objectives.masking import whiten
from gemma_alignment.objectives.reductions import token_mean
from gemma_alignment.objectives.rewards import token_rewards
from gemma_alignment.schemas import Credit, Experience, Minibatch, Normalizer
from gemma_alignment.training.methods.base import MethodSettings, Stats, response_scores


@dataclass(frozen=True)
class PPO(MethodSettings):
    """Proximal policy optimisation, Schulman et al. (2017), arXiv:1707.06347, for scored responses."""

    gamma: float
    """Discount from token to token."""
    gae_lambda: float
    """0 trusts the critic, 1 the score alone."""
    value_coef: float
    """Factor of the value loss."""
    value_clip: float
    """How far a value may move from the sampled one, in the unit of the normalised scores."""

    name: ClassVar[str] = "ppo"
    needs_critic: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in ("gamma", "gae_lambda"):
            if not 0 <= getattr(self, field) <= 1:
                raise ValueError(f"{field} is {getattr(self, field)}, but must lie between 0 and 1")
        for field in ("value_coef", "value_clip"):
            if getattr(self, field) <= 0:
                raise ValueError(f"{field} is {getattr(self, field)}, but must be above 0")

    def assign_credit(self, experience: Experience, kl_coef: float) -> Credit:
        """Score at the last token and penalty at each -> GAE -> normalise; the returns stay raw."""
        if experience.values is None:
            raise ValueError("PPO assigns credit with a critic's values, and this experience has none")
        mask, scores = experience.response_mask, response_scores(self, experience, kl_coef)
        coef = kl_coef if self.kl_placement == "token_reward" else 0.0
        rewards = token_rewards(scores, experience.old_logprobs, experience.ref_logprobs, mask, coef)
        advantages, returns = gae(rewards, experience.values, mask, self.gamma, self.gae_lambda)
        if self.normalize_advantages == "whiten":
            advantages = whiten(advantages, mask)
        elif self.normalize_advantages == "group_std":
            advantages = group_whiten(advantages, mask, self.group_size)
        return Credit(advantages, returns)

    def value_loss(self, values: Tensor, micro: Minibatch, normalizer: Normalizer) -> tuple[Tensor, Stats]:
        """value_coef · the token mean of the clipped error, whatever ``reduction`` the policy's loss has."""
        if micro.values is None or micro.returns is None:
            raise ValueError("the value loss needs the sampled values and their returns")
        mask = micro.response_mask
        new, old = values.masked_fill(~mask, 0.0), micro.values.masked_fill(~mask, 0.0)
        mean = token_mean(clipped_value_error(new, old, micro.returns, self.value_clip), mask, normalizer)
        return self.value_coef * mean, {"value_loss": mean.detach()}
