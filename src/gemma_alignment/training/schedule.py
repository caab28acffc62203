"""The learning-rate schedule and the optimizer step that supervised and preference training share."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gemma_alignment.errors import UserError


def warmup_cosine(step: int, total: int, warmup_share: float) -> float:
    """Factor of the peak rate at ``step`` of ``total``: a linear rise, then half a cosine to 0."""
    warmup = max(1, round(total * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def guarded_step(
    optimizer: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], loss: float | Tensor, max_grad_norm: float,
    where: str,
) -> float:  # fmt: skip
    """Clip, check, step and clear; returns the gradient's norm before clipping.

    Raises:
        UserError: when loss or gradient is not finite, before the optimizer touches a weight.
    """
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm))
    if not (math.isfinite(float(loss)) and math.isfinite(norm)):
        raise UserError(
            f"{where}: the loss is {float(loss)} and the gradient's norm {norm}; no weight was changed. "
            "Lower the learning rate or look at the rows named here."
        )
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm
