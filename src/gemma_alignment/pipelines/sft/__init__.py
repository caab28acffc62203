"""Supervised fine-tuning: the warm start of every arm."""

from gemma_alignment.pipelines.sft.pipeline import create_pipeline

__all__ = ["create_pipeline"]
