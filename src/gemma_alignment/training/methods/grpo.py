"""GRPO: no critic; a response is compared with the mean of its group."""

from dataclasses import dataclass
from typing import ClassVar

from gemma_alignment.objectives.advantages import group_centered
from gemma_alignment.schemas import Credit, Experience
from gemma_alignment.training.methods.base import GroupSettings, group_credit


@dataclass(frozen=True)
class GRPO(GroupSettings):
    """Group relative policy optimisation, Shao et al. (2024), arXiv:2402.03300.

    Here A_i = r_i − mean(r) on EMA-normalised scores. The paper also divides by the group's sd:
    that is ``normalize_advantages: group_std``.
    """

    name: ClassVar[str] = "grpo"
    needs_critic: ClassVar[bool] = False

    def assign_credit(self, experience: Experience, kl_coef: float) -> Credit:
        """Every token of a response gets r_i − mean(r)."""
        return group_credit(self, experience, kl_coef, group_centered)
