"""Finished runs and judgements become a comparison and a report."""

from gemma_alignment.pipelines.reporting.pipeline import create_pipeline

__all__ = ["create_pipeline"]
