"""PPO: actor and critic, GAE, KL in the token rewards."""

from kedro.pipeline import Pipeline

from gemma_alignment.pipelines.policy_optimization import create_arm


def create_pipeline() -> Pipeline:
    """The arm ``ppo``: the same nodes as every other, with its own parameters."""
    return create_arm("ppo")
