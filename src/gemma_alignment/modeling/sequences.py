"""Prompts and responses as padded tensors: prompts to the left, responses to the right."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar, cast

import torch
from torch import Tensor

T = TypeVar("T")


class HasSequences(Protocol):
    """Anything that carries prompts (B, P) and responses (B, T) with their masks."""

    @property
    def prompt_tokens(self) -> Tensor: ...  # noqa: D102
    @property
    def prompt_mask(self) -> Tensor: ...  # noqa: D102
    @property
    def response_tokens(self) -> Tensor: ...  # noqa: D102
    @property
    def response_mask(self) -> Tensor: ...  # noqa: D102


class _Tensors(NamedTuple):
    prompt_tokens: Tensor
    prompt_mask: Tensor
    response_tokens: Tensor
    response_mask: Tensor


class Sequences(_Tensors):
    """The plain carrier of :class:`HasSequences`."""


def once(batch: HasSequences, name: str, make: Callable[[], T]) -> T:
    """``make()``, kept with the batch for the next pass over it: its tensors must not change."""
    kept = vars(batch)
    if name not in kept:
        kept[name] = make()
    return cast(T, kept[name])


def pad(rows: Sequence[Sequence[int]], pad_id: int, left: bool) -> tuple[Tensor, Tensor]:
    """Rows of ids as one tensor (B, L) and the mask of what is real."""
    width = max(1, max((len(row) for row in rows), default=1))
    tokens = torch.full((len(rows), width), pad_id, dtype=torch.long)
    mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, row in enumerate(rows):
        where = slice(width - len(row), width) if left else slice(0, len(row))
        tokens[i, where] = torch.tensor(list(row), dtype=torch.long)
        mask[i, where] = True
    return tokens, mask


def sequences(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], pad_id: int) -> Sequences:
    """Pair each prompt with its response."""
    return Sequences(*pad(prompts, pad_id, left=True), *pad(responses, pad_id, left=False))


def by_length(prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Row numbers in groups of at most ``size``, rows of like length together: little padding."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]) + len(responses[i]))
    return [order[start : start + size] for start in range(0, len(order), size)]
