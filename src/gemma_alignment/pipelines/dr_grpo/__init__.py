"""Dr. GRPO: group-centred credit, constant-length reduction."""

from gemma_alignment.pipelines.dr_grpo.pipeline import create_pipeline

__all__ = ["create_pipeline"]
