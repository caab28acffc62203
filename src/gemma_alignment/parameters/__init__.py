"""Every parameter of the project: one frozen dataclass for each section of ``conf/base/parameters*.yml``."""

import importlib
from typing import Any

SECTIONS: dict[str, str] = {
    "study": "gemma_alignment.parameters.study:StudyParameters",
    "rates": "gemma_alignment.parameters.rates:RateParameters",
    "preferences": "gemma_alignment.parameters.data:PreferencesParameters",
    "world": "gemma_alignment.parameters.data:WorldParameters",
    "tiny_model": "gemma_alignment.parameters.data:TinyModelParameters",
    "tokenizer": "gemma_alignment.parameters.data:TokenizerParameters",
    "pretraining": "gemma_alignment.parameters.data:PretrainingParameters",
    "modeling": "gemma_alignment.parameters.training:ModelingParameters",
    "runtime": "gemma_alignment.parameters.training:RuntimeParameters",
    "sft": "gemma_alignment.parameters.training:SFTParameters",
    "reward_model": "gemma_alignment.parameters.training:RewardModelParameters",
    "policy_optimization": "gemma_alignment.parameters.training:PolicyOptimizationParameters",
    "rollout": "gemma_alignment.parameters.rollout:RolloutParameters",
    "kl_control": "gemma_alignment.parameters.training:KLControlParameters",
    "score_normalization": "gemma_alignment.parameters.training:ScoreNormalizationParameters",
    "ppo": "gemma_alignment.training.methods.ppo:PPO",
    "grpo": "gemma_alignment.training.methods.grpo:GRPO",
    "rloo": "gemma_alignment.training.methods.rloo:RLOO",
    "dr_grpo": "gemma_alignment.training.methods.dr_grpo:DrGRPO",
    "evaluation": "gemma_alignment.parameters.judge:EvaluationParameters",
    "judge": "gemma_alignment.parameters.judge:JudgeParameters",
    "protocol": "gemma_alignment.parameters.reporting:ProtocolParameters",
    "reporting": "gemma_alignment.parameters.reporting:ReportingParameters",
}
"""Section -> ``module:class``, by name so that reading this imports nothing heavy."""


def section_class(section: str) -> type[Any]:
    """The dataclass of a section; that of a method imports torch."""
    module, _, name = SECTIONS[section].partition(":")
    found: type[Any] = getattr(importlib.import_module(module), name)
    return found
