"""GRPO: groups of K responses, no critic, KL in the loss."""

from gemma_alignment.pipelines.grpo.pipeline import create_pipeline

__all__ = ["create_pipeline"]
