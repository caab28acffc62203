"""The same roles, each on a base of its own: what one shared base saves is measured against this.

The numbers are those of :class:`~gemma_alignment.modeling.roles.SharedBase`: every copy is read from the same
files, and every adapter is drawn from the same seed.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from gemma_alignment.modeling.protocols import Precision, Role
from gemma_alignment.modeling.roles import SharedBase
from gemma_alignment.modeling.sequences import HasSequences


class SeparateCopies:
    """A base for each role that is used, made by ``make`` when it first is."""

    def __init__(self, make: Callable[[], SharedBase]) -> None:
        self._make = make
        self._copies: dict[Role, SharedBase] = {}
        self._active: Role | None = None

    def holder(self, name: Role) -> SharedBase:
        """The base that plays a role."""
        if name not in self._copies:
            self._copies[name] = self._make()
        return self._copies[name]

    @property
    def _current(self) -> SharedBase:
        if self._active is None:
            raise RuntimeError("a forward pass needs a role: use `with model.role(...)`")
        return self._copies[self._active]

    @property
    def device(self) -> torch.device:
        """Where the bases are."""
        return torch.device(self.holder("policy").device)

    @property
    def packing(self) -> "_PackingOfEach":
        """Which way the states of each role are computed."""
        return _PackingOfEach(self)

    @property
    def is_exact(self) -> bool:
        """Whether decoding and a training forward give the same log-probabilities."""
        return self.holder("policy").is_exact

    def add(self, name: Role, zero_head: bool = False) -> None:
        """A fresh adapter on a base of its own."""
        self.holder(name).add(name, zero_head)

    def load(self, name: Role, directory: str) -> None:
        """An adapter of a directory on a base of its own.

        Raises:
            UserError: when the files are damaged or belong to another base.
        """
        self.holder(name).load(name, directory)

    @contextmanager
    def role(self, name: Role, train: bool = False) -> Iterator[None]:
        """Play a role for a forward and its backward.

        Raises:
            RuntimeError: inside another role, as on one base.
        """
        if self._active is not None:
            raise RuntimeError(f"cannot become {name!r} inside the role {self._active!r}: finish its backward first")
        with self.holder(name).role(name, train):
            self._active = name
            try:
                yield
            finally:
                self._active = None

    def named_parameters_of(self, name: Role) -> dict[str, nn.Parameter]:
        """What the role trains."""
        return self.holder(name).named_parameters_of(name)

    def parameters_of(self, name: Role) -> list[nn.Parameter]:
        """The same without names."""
        return self.holder(name).parameters_of(name)

    def adam(self, name: Role, rate: float, epsilon: float = 1e-8) -> torch.optim.Optimizer:
        """Adam over what training this role changes."""
        return self.holder(name).adam(name, rate, epsilon)

    def logprobs(self, batch: HasSequences, temperature: float) -> tuple[Tensor, Tensor | None]:
        """Log-probabilities (B, T) of the response tokens in the active role; in training their entropies."""
        return self._current.logprobs(batch, temperature)

    def values(self, batch: HasSequences) -> Tensor:
        """The critic's estimate (B, T) before each response token."""
        return self._current.values(batch)

    def scores(self, batch: HasSequences) -> Tensor:
        """The reward head's raw output (B,) at the last response token."""
        return self._current.scores(batch)

    def decoder(
        self, role: Role = "policy", weights: str = "merged", precision: Precision = "as_held"
    ) -> AbstractContextManager[Any]:
        """The causal language model that samples for a role."""
        return self.holder(role).decoder(role, weights, precision)

    def count_decoding(self, tokens: int) -> None:
        """Add the forward passes of sampling to the count of operations."""
        self.holder("policy").count_decoding(tokens)

    def forward_flops(self) -> float:
        """Floating-point operations of all bases."""
        return sum(one.forward_flops() for one in self._copies.values())

    def count_from(self, flops: float) -> None:
        """Let the count of operations go on from that of an earlier attempt."""
        for one in self._copies.values():
            one.count_from(0.0)
        self.holder("policy").count_from(flops)

    @property
    def holders(self) -> Mapping[Role, SharedBase]:
        """The bases that were used so far."""
        return self._copies


class _PackingOfEach:
    """The answers of several bases as one part of a checkpoint."""

    def __init__(self, copies: SeparateCopies) -> None:
        self._copies = copies

    def state_dict(self) -> dict[str, bool]:
        """By role; nothing of a role before its first batch."""
        states = {role: one.packing.state_dict() for role, one in self._copies.holders.items()}
        return {role: state["agrees"] for role, state in states.items() if state}

    def load_state_dict(self, state: Mapping[Role, int | float]) -> None:
        """Go on from where ``state_dict`` was taken."""
        for role, agrees in state.items():
            self._copies.holder(role).packing.load_state_dict({"agrees": agrees})
