"""Group relative policy optimization, centred and not scaled (arXiv:2402.03300)."""

from dataclasses import dataclass
from typing import ClassVar

from gemma_alignment.objectives.advantages import group_centered
from gemma_alignment.schemas import Credit, Experience
from gemma_alignment.training.methods.base import GroupSettings


@dataclass(frozen=True)
class GRPO(GroupSettings):
    """A_i = r_i − mean(r) in the group, the same for every token of a response."""

    name: ClassVar[str] = "grpo"
    needs_critic: ClassVar[bool] = False

    def assign_credit(self, experience: Experience, kl_coef: float) -> Credit:
        """Centre the scores in their groups."""
        scores = self.sequence_scores(experience, kl_coef)
        return self.spread(group_centered(scores, experience.group_size), experience)
