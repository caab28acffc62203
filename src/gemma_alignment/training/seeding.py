"""Random states derived from (seed, what for, step): the same on any machine, after any restart."""

import hashlib
from functools import lru_cache

import torch
from torch import Tensor


def generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A CPU generator of its own for one purpose at one step.

    Arms with the same seed get the same numbers at the same step: common random numbers.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


@lru_cache(maxsize=4)
def _permutation(length: int, seed: int, purpose: str, step: int) -> Tensor:
    """Kept while an epoch goes on: every step reads a part of it, and of a million rows it takes eight megabytes."""
    return torch.randperm(length, generator=generator(seed, purpose, step))


def shuffled(
    length: int, seed: int, purpose: str, step: int = 0, start: int = 0, count: int | None = None
) -> list[int]:  # fmt: skip
    """``count`` numbers from place ``start`` of a permutation of ``range(length)``; None: all that follow."""
    stop = length if count is None else start + count
    return _permutation(length, seed, purpose, step)[start:stop].tolist()


def prompt_order(length: int, count: int, iteration: int, seed: int) -> list[int]:
    """The row numbers of an iteration's prompts: epoch after epoch without replacement."""
    if length == 0:
        raise ValueError("there are no training prompts")
    rows: list[int] = []
    position = iteration * count
    while len(rows) < count:
        epoch, offset = divmod(position, length)
        take = shuffled(length, seed, "prompts", epoch, offset, count - len(rows))
        rows += take
        position += len(take)
    return rows
