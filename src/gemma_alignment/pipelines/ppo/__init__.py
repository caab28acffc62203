"""PPO: actor and critic, GAE, KL in the token rewards."""

from gemma_alignment.pipelines.ppo.pipeline import create_pipeline

__all__ = ["create_pipeline"]
