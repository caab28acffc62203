"""Proximal policy optimization: actor and critic, GAE (arXiv:1707.06347, arXiv:1506.02438)."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from gemma_alignment.objectives.advantages import gae, group_zscore
from gemma_alignment.objectives.losses import clipped_value_error
from gemma_alignment.objectives.masking import whiten
from gemma_alignment.objectives.reductions import token_mean
from gemma_alignment.objectives.rewards import token_rewards
from gemma_alignment.schemas import Credit, Experience, Minibatch, Normalizer
from gemma_alignment.training.methods.base import Settings, Stats


@dataclass(frozen=True)
class PPO(Settings):
    """Token rewards with the score at EOS -> GAE -> whitened advantages; clipped value loss."""

    gamma: float
    """Discount per token."""
    gae_lambda: float
    """λ of GAE: 0 trusts the critic, 1 the sampled return."""
    value_coef: float
    """Weight of the value loss; the critic has an optimizer of its own."""
    value_clip: float
    """How far a value may move from the old one in an iteration, in units of the score."""

    name: ClassVar[str] = "ppo"
    needs_critic: ClassVar[bool] = True

    def assign_credit(self, experience: Experience, kl_coef: float) -> Credit:
        """GAE on −kl_coef · k1 per token plus the score at the last one; returns before whitening."""
        if experience.values is None:
            raise ValueError("PPO needs the critic's values")
        scores = self.sequence_scores(experience, kl_coef)
        per_token = kl_coef if self.kl_placement == "token_reward" else 0.0
        mask = experience.response_mask
        rewards = token_rewards(scores, experience.old_logprobs, experience.ref_logprobs, mask, per_token)
        advantages, returns = gae(rewards, experience.values, mask, self.gamma, self.gae_lambda)
        if self.normalize_advantages == "whiten":
            advantages = whiten(advantages, mask)
        elif self.normalize_advantages == "group_std":
            advantages = group_zscore(advantages.sum(1), experience.group_size)[:, None] * mask
        return Credit(advantages, returns)

    def value_loss(self, values: Tensor, micro: Minibatch, normalizer: Normalizer) -> tuple[Tensor, Stats]:
        """value_coef · token mean of the clipped value error."""
        if micro.values is None or micro.returns is None:
            raise ValueError("the value loss needs old values and returns")
        error = clipped_value_error(values, micro.values, micro.returns, self.value_clip)
        loss = token_mean(error, micro.response_mask, normalizer)
        return self.value_coef * loss, {"value_loss": loss.detach()}
