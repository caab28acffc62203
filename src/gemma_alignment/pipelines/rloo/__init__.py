"""RLOO: leave-one-out credit, KL in the sequence score."""

from gemma_alignment.pipelines.rloo.pipeline import create_pipeline

__all__ = ["create_pipeline"]
