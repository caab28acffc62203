"""Answers meet in pairs and a judge compares them in both orders."""

from gemma_alignment.pipelines.evaluation.pipeline import create_pipeline

__all__ = ["create_pipeline"]
