"""Preference rows to checked, split data and a base model."""

from gemma_alignment.pipelines.data_processing.pipeline import create_pipeline

__all__ = ["create_pipeline"]
