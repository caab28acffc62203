"""RLOO: leave-one-out credit, KL in the sequence score."""

from kedro.pipeline import Pipeline

from gemma_alignment.pipelines.policy_optimization import create_arm


def create_pipeline() -> Pipeline:
    """The arm ``rloo``: the same nodes as every other, with its own parameters."""
    return create_arm("rloo")
