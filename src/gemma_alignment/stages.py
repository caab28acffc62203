"""The stages of the study: their names, and where the outputs and the record of each stand."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from gemma_alignment.config import nearest

PREPARATION = ("data_processing", "sft", "reward_model")
"""Run once, from ``prepare_seed``, in this order."""
ARMS = ("ppo", "grpo", "rloo", "dr_grpo")
"""Run once a seed."""
COMPARED = ("ppo", "grpo")
"""The arms of the study's question; ``kedro run`` without a pipeline runs these."""
CLOSING = ("evaluation", "reporting")
"""Read what the arms left; may always be done again."""
KINDS = ("ablation", "sweep")
"""What a variant can have been asked for as; for both, their names with a + between them."""
STAGES = (*PREPARATION, *ARMS, *CLOSING)
EXPORT = "export"
"""The pipeline that trains and measures nothing, and so is no stage."""


def unknown_method(name: str) -> str | None:
    """The sentence for a name that is neither an arm nor a variant of one (``grpo@k4``); None for those."""
    arm = name.partition("@")[0]
    if arm in ARMS:
        return None
    near = nearest(arm, ARMS)
    hint = f"did you mean {near}?" if near else f"there are {', '.join(ARMS)}"
    return f"unknown method {name}; {hint}"


def kinds_of(*said: str | None) -> str:
    """The kinds that any of ``said`` names, as a record holds them: ``ablation+sweep``, one of the two, or none."""
    named = {kind for one in said for kind in (one or "").split("+")}
    return "+".join(kind for kind in KINDS if kind in named)


@dataclass(frozen=True)
class Stage:
    """One stage of one run: an arm has a seed and perhaps a variant, the others stand once."""

    name: str
    seed: int
    variant: str = ""

    @classmethod
    def of(cls, name: str, parameters: Mapping[str, Any]) -> Self:
        """The stage ``name`` under these parameters: the arms take ``seed``, the others ``prepare_seed``."""
        if name in ARMS:
            return cls(name, parameters["seed"], parameters["variant"])
        return cls(name, parameters["prepare_seed"])

    @property
    def is_arm(self) -> bool:
        """Whether it trains a policy."""
        return self.name in ARMS

    @property
    def folder(self) -> str:
        """``grpo/seed=42``, ``grpo@k8/seed=42``, ``sft``."""
        return f"{self._name}/seed={self.seed}" if self.is_arm else self.name

    @property
    def run_name(self) -> str:
        """Its name in MLflow: ``grpo-seed42``, ``grpo@k8-seed42``, ``sft``."""
        return f"{self._name}-seed{self.seed}" if self.is_arm else self.name

    def directory(self, data_root: str | Path) -> Path:
        """Where its ``run.json`` and its lines stand."""
        return Path(data_root) / "07_model_output" / self.folder

    @property
    def _name(self) -> str:
        return f"{self.name}@{self.variant}" if self.variant else self.name
