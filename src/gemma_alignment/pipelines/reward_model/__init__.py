"""The Bradley-Terry reward model: the frozen teacher of every arm."""

from gemma_alignment.pipelines.reward_model.pipeline import create_pipeline

__all__ = ["create_pipeline"]
