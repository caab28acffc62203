"""Parameters of sampling."""

from dataclasses import dataclass
from typing import Literal

from gemma_alignment.parameters.training import check_positive


@dataclass(frozen=True)
class RolloutParameters:
    """How responses are sampled."""

    max_new_tokens: int
    """Longest response, the ending token included."""
    temperature: float
    """Sampling temperature; the same divides the logits wherever log-probabilities are taken."""
    batch_size: int
    """Responses decoded at a time."""
    engine: Literal["transformers", "continuous_batching"]
    """The project's own loop over a model's modules, or the paged one of transformers 5."""
    weights: Literal["merged", "adapter"]
    """Decode with a merged copy of the weights (fast, one more copy), or through the adapter."""
    precision: Literal["as_held", "bf16", "4bit"]
    """Of the weights decoded with: as the model is held, a merged copy in bfloat16, or the 4 bits themselves."""

    def __post_init__(self) -> None:
        check_positive(max_new_tokens=self.max_new_tokens, temperature=self.temperature, batch_size=self.batch_size)
        if self.precision == "bf16" and self.weights != "merged":
            raise ValueError("precision is 'bf16', which is a merged copy: set rollout.weights=merged too")
        if self.precision == "4bit" and self.weights != "adapter":
            raise ValueError("precision is '4bit', which no merged copy has: set rollout.weights=adapter too")
