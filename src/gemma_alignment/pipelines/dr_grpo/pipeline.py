"""Dr. GRPO: group-centred credit, constant-length reduction."""

from kedro.pipeline import Pipeline

from gemma_alignment.pipelines.policy_optimization import create_arm


def create_pipeline() -> Pipeline:
    """The arm ``dr_grpo``: the same nodes as every other, with its own parameters."""
    return create_arm("dr_grpo")
