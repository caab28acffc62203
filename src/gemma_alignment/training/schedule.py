"""The learning-rate schedule and the optimizer step that supervised and preference training share."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from gemma_alignment.errors import UserError


def warmup_cosine(step: int, total: int, warmup_share: float) -> float:
    """Factor of the peak rate at ``step`` of ``total``: a linear rise, then half a cosine to 0."""
    warmup = max(1, round(total * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def clipped(parameters: Mapping[str, nn.Parameter], max_grad_norm: float, where: str) -> float:
    """Clip the gradient's norm; returns the norm from before.

    Raises:
        UserError: when the gradient is not finite; it names ``where`` and the first bad tensor.
        RuntimeError: when a tensor has none: the step would train less than was meant, without a word.
    """
    gradients = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    if lacking := [name for name in parameters if name not in gradients]:
        raise RuntimeError(
            f"{where}: {len(lacking)} of {len(parameters)} tensors have no gradient, such as {lacking[0]}: an adapter "
            "was switched or disabled between the forward and its backward"
        )
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    if not bool(torch.isfinite(norm)):
        bad = [name for name, gradient in gradients.items() if not bool(torch.isfinite(gradient).all())]
        raise _stopped(where, f"the gradient of {bad[0]} is not finite" if bad else "the gradient's norm is infinite")
    torch.nn.utils.clip_grads_with_norm_(parameters.values(), max_grad_norm, norm)
    return float(norm)


def guarded_step(
    optimizer: torch.optim.Optimizer, parameters: Mapping[str, nn.Parameter], loss: float | Tensor,
    max_grad_norm: float, where: str,
) -> float:  # fmt: skip
    """Clip, check, step and clear; returns the gradient's norm before clipping.

    Raises:
        UserError: when loss or gradient is not finite, before the optimizer touches a weight.
    """
    if not math.isfinite(float(loss)):
        raise _stopped(where, f"the loss is {float(loss)}")
    norm = clipped(parameters, max_grad_norm, where)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return norm


def _stopped(where: str, what: str) -> UserError:
    return UserError(
        f"{where}: {what}. The optimizer did not step. "
        "The usual causes are a learning rate that is too high and a damaged adapter."
    )
