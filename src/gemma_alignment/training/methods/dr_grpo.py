"""Dr. GRPO: GRPO without the two divisions that bias it, by the group's sd and by the response's length."""

from dataclasses import dataclass
from typing import ClassVar

from gemma_alignment.objectives.advantages import group_centered
from gemma_alignment.schemas import Credit, Experience
from gemma_alignment.training.methods.base import GroupSettings, group_credit


@dataclass(frozen=True)
class DrGRPO(GroupSettings):
    """Group relative policy optimisation done right, Liu et al. (2025), arXiv:2503.20783.

    GRPO of this study leaves out the sd already, so the two differ in ``reduction`` alone: its parameters
    file has ``constant_length``, which divides by the longest length allowed, not by each response's own.
    """

    name: ClassVar[str] = "dr_grpo"
    needs_critic: ClassVar[bool] = False

    def assign_credit(self, experience: Experience, kl_coef: float) -> Credit:
        """Every token of a response gets r_i − mean(r)."""
        return group_credit(self, experience, kl_coef, group_centered)
