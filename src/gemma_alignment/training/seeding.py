"""Random states derived from (seed, what for, step): the same on any machine, after any restart."""

import hashlib

import torch


def generator(seed: int, purpose: str, step: int = 0) -> torch.Generator:
    """A CPU generator of its own for one purpose at one step.

    Arms with the same seed get the same numbers at the same step: common random numbers.
    """
    digest = hashlib.sha256(f"{seed}/{purpose}/{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def shuffled(length: int, seed: int, purpose: str, step: int = 0) -> list[int]:
    """A permutation of ``range(length)``."""
    return torch.randperm(length, generator=generator(seed, purpose, step)).tolist()


def prompt_order(length: int, count: int, iteration: int, seed: int) -> list[int]:
    """The row numbers of an iteration's prompts: epoch after epoch without replacement."""
    if length == 0:
        raise ValueError("there are no training prompts")
    rows: list[int] = []
    position = iteration * count
    while len(rows) < count:
        epoch, offset = divmod(position, length)
        take = shuffled(length, seed, "prompts", epoch)[offset : offset + count - len(rows)]
        rows += take
        position += len(take)
    return rows
