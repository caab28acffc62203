"""The arms of the study: a new one is a file here, a line below, a parameters file and a pipeline."""

from gemma_alignment.training.methods.dr_grpo import DrGRPO
from gemma_alignment.training.methods.grpo import GRPO
from gemma_alignment.training.methods.ppo import PPO
from gemma_alignment.training.methods.rloo import RLOO

METHODS: dict[str, type[PPO] | type[GRPO] | type[RLOO] | type[DrGRPO]] = {
    "ppo": PPO,
    "grpo": GRPO,
    "rloo": RLOO,
    "dr_grpo": DrGRPO,
}
