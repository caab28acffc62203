"""Dr. GRPO: GRPO's centred credit without the bias by length (arXiv:2503.20783)."""

from dataclasses import dataclass
from typing import ClassVar

from gemma_alignment.training.methods.grpo import GRPO


@dataclass(frozen=True)
class DrGRPO(GRPO):
    """The credit of this study's GRPO; what differs is ``reduction: constant_length``."""

    name: ClassVar[str] = "dr_grpo"
