"""RLOO: no critic; a response is compared with the mean of the others of its group."""

from dataclasses import dataclass
from typing import ClassVar

from gemma_alignment.objectives.advantages import leave_one_out
from gemma_alignment.schemas import Credit, Experience
from gemma_alignment.training.methods.base import GroupSettings, group_credit


@dataclass(frozen=True)
class RLOO(GroupSettings):
    """REINFORCE leave-one-out, Ahmadian et al. (2024), arXiv:2402.14740, with the shared clipped surrogate.

    The paper takes the response as one action; here its tokens share its credit and the ratio is one a token.
    """

    name: ClassVar[str] = "rloo"
    needs_critic: ClassVar[bool] = False

    def assign_credit(self, experience: Experience, kl_coef: float) -> Credit:
        """Every token of a response gets r_i − the mean of the others, K/(K−1) of GRPO's credit."""
        return group_credit(self, experience, kl_coef, leave_one_out)
