"""REINFORCE leave-one-out (arXiv:2402.14740)."""

from dataclasses import dataclass
from typing import ClassVar

from gemma_alignment.objectives.advantages import leave_one_out
from gemma_alignment.schemas import Credit, Experience
from gemma_alignment.training.methods.base import GroupSettings


@dataclass(frozen=True)
class RLOO(GroupSettings):
    """A_i = r_i − mean of the other responses to the prompt."""

    name: ClassVar[str] = "rloo"
    needs_critic: ClassVar[bool] = False

    def assign_credit(self, experience: Experience, kl_coef: float) -> Credit:
        """Subtract the mean of the others, KL in the sequence's score by default."""
        scores = self.sequence_scores(experience, kl_coef)
        return self.spread(leave_one_out(scores, experience.group_size), experience)
