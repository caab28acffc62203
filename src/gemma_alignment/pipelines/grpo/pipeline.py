"""GRPO: groups of K responses, no critic, KL in the loss."""

from kedro.pipeline import Pipeline

from gemma_alignment.pipelines.policy_optimization import create_arm


def create_pipeline() -> Pipeline:
    """The arm ``grpo``: the same nodes as every other, with its own parameters."""
    return create_arm("grpo")
