"""A trained policy as a plain model directory that any engine can serve."""

from gemma_alignment.pipelines.export.pipeline import create_pipeline

__all__ = ["create_pipeline"]
