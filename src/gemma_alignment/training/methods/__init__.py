"""The methods, by name. Adding one is a file here, a line below, a parameters file and a pipeline."""

from gemma_alignment.training.methods.dr_grpo import DrGRPO
from gemma_alignment.training.methods.grpo import GRPO
from gemma_alignment.training.methods.ppo import PPO
from gemma_alignment.training.methods.rloo import RLOO

METHODS = {"ppo": PPO, "grpo": GRPO, "rloo": RLOO, "dr_grpo": DrGRPO}
