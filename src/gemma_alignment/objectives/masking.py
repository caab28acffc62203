"""Statistics over the real tokens. The one place where a mask meets a sum."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from gemma_alignment.objectives.precision import Number, at_least_float32


def masked_sum(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], dim: int | tuple[int, ...] | None = None
) -> Float[Tensor, "..."]:
    """Sum over the True positions, Σ m·x.

    Masked positions are replaced, not multiplied by 0: a NaN there reaches neither value nor gradient.

    Args:
        x: any shape.
        mask: the same shape, True where ``x`` counts.
        dim: the dimensions to sum over; None sums all.
    """
    return at_least_float32(x).masked_fill(~mask, 0.0).sum(dim)


def masked_mean(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], dim: int | tuple[int, ...] | None = None
) -> Float[Tensor, "..."]:
    """Mean over the True positions, Σ m·x / Σ m, in at least fp32; 0 where a mask is empty.

    Args:
        x: any shape.
        mask: the same shape, True where ``x`` counts.
        dim: the dimensions to average over; None averages all.
    """
    return masked_sum(x, mask, dim) / mask.sum(dim).clamp(min=1)


def whiten(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], eps: Number = 1e-8) -> Float[Tensor, "*shape"]:
    """Shift and scale to mean 0 and variance 1 on the mask, 0 elsewhere.

    (x − μ) / √(σ² + eps) with the masked mean μ and the masked population variance σ² (no Bessel
    correction), in at least fp32. Invariant to x -> a·x + b with a > 0, as long as σ² ≫ eps.

    Source: the advantage normalisation of the PPO reference implementation; unlike torchtune's
    ``whiten``, which by default adds the mean back (torchtune/rlhf/rewards.py, at bd2a0fc).
    """
    centred = (at_least_float32(x) - masked_mean(x, mask)).masked_fill(~mask, 0.0)
    return centred * torch.rsqrt(masked_mean(centred.square(), mask) + eps)


def last_position(mask: Bool[Tensor, "B T"]) -> Int[Tensor, " B"]:
    """Index of the last True in each row.

    Raises:
        ValueError: when a row has none.
    """
    if not bool(mask.any(1).all()):
        rows = (~mask.any(1)).nonzero()[:3, 0].tolist()
        raise ValueError(f"rows {rows} have no response token: even an empty answer has its ending token")
    return mask.shape[1] - 1 - mask.flip(1).int().argmax(1)
