"""A controlled comparison of PPO and GRPO, from preference data to a report with honest intervals."""

__version__ = "0.1.0"
