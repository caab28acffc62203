"""What the training loops ask of a model, without naming a library."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from gemma_alignment.modeling.sequences import HasSequences

Role = Literal["policy", "reference", "reward", "critic"]
Precision = Literal["as_held", "bf16", "4bit"]


class RoleModel(Protocol):
    """One base model that plays several roles, one at a time."""

    device: torch.device

    @property
    def packing(self) -> "Kept":
        """Which way its states are computed."""

    def role(self, name: Role, train: bool = False) -> AbstractContextManager[None]:
        """Play a role for a forward and its backward."""

    def logprobs(self, batch: HasSequences, temperature: float) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (B, T) of the response tokens in the active role; in training their entropies."""

    def values(self, batch: HasSequences) -> Tensor:
        """The critic's estimate (B, T) before each response token."""

    def scores(self, batch: HasSequences) -> Tensor:
        """The reward head's raw output (B,) at the last response token."""

    def named_parameters_of(self, name: Role) -> dict[str, torch.nn.Parameter]:
        """What the role trains."""

    def parameters_of(self, name: Role) -> list[torch.nn.Parameter]:
        """The same without names."""

    def adam(self, name: Role, rate: float, epsilon: float = 1e-8) -> torch.optim.Optimizer:
        """Adam over what the role trains."""

    def decoder(
        self, role: Role = "policy", weights: str = "merged", precision: Precision = "as_held"
    ) -> AbstractContextManager[Any]:
        """The causal language model that samples for a role as it is now."""

    def forward_flops(self) -> float:
        """Floating-point operations counted since the model was made."""

    def count_from(self, flops: float) -> None:
        """Let that count go on from here: from an earlier attempt's, or as before what does not count."""


class Kept(Protocol):
    """What a checkpoint keeps some numbers of."""

    def state_dict(self) -> Mapping[str, int | float]:
        """The numbers."""

    def load_state_dict(self, state: Any) -> None:
        """Go on from where ``state_dict`` was taken."""


class Text(Protocol):
    """Text to ids and back."""

    @property
    def stop_ids(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def pad_id(self) -> int: ...  # noqa: D102
    def encode_prompt(self, prompt: str) -> list[int]: ...  # noqa: D102
    def encode_response(self, response: str) -> list[int]: ...  # noqa: D102
    def decode_response(self, tokens: Sequence[int]) -> str: ...  # noqa: D102
