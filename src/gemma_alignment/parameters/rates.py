"""What a machine does in a second: for the hours that a study will take, before it starts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class RateParameters:
    """Rates of one GPU, for the model of the study."""

    forward_tokens_per_second: float
    """Tokens that go through the frozen model in one direction."""
    train_tokens_per_second: float
    """Tokens that an adapter learns from: forward, the same again under checkpointing, backward, optimizer."""
    decode_steps_per_second: float
    """Steps of decoding, each a token for every row of the batch; the pass over the prompts is in them."""
    parallel_efficiency: float
    """What p GPUs that share a run do, as a part of p times what one does."""
    measured_on: str | None
    """The GPU that they were measured on; null: they are assumed, and so are the hours."""

    def __post_init__(self) -> None:
        for name in ("forward_tokens_per_second", "train_tokens_per_second", "decode_steps_per_second"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be above 0")
        if not 0 < self.parallel_efficiency <= 1:
            raise ValueError(f"parallel_efficiency is {self.parallel_efficiency}, but must lie in (0, 1]")
