"""How much better than expected: with a critic (GAE), or against the other responses of the group."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from gemma_alignment.objectives.masking import masked_mean
from gemma_alignment.objectives.precision import Number, at_least_float32

GROUP_EPSILON = 1e-4
"""Added to a group's sd: continuous scores rarely tie, and a smaller one would blow their noise up to ±1."""


def gae(
    rewards: Float[Tensor, "B T"],
    values: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    gamma: Number,
    gae_lambda: Number,
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T"]]:
    """Generalised advantage estimation within each response.

    δ_t = r_t + γ V_{t+1} − V_t and A_t = δ_t + γλ A_{t+1}, with V and A equal to 0 after the last real
    token (also where the response was cut off: zero bootstrap). R_t = A_t + V_t.

    Args:
        rewards: (B, T) per token.
        values: (B, T), V_t read before token t.
        response_mask: (B, T), True on a leading run of each row; holes inside are not expected.
        gamma: discount.
        gae_lambda: 0 gives the one-step error δ_t, 1 the discounted return minus V_t.

    Returns:
        Advantages and returns, both (B, T) in at least fp32, before any whitening and 0 on padding.

    Source: Schulman et al. (2016), arXiv:1506.02438, equation 16.
    """
    rewards = at_least_float32(rewards)
    values = at_least_float32(values).masked_fill(~response_mask, 0.0)
    following = torch.cat([values[:, 1:], torch.zeros_like(values[:, :1])], dim=1)
    errors = rewards + gamma * following - values
    advantages = torch.zeros_like(errors)
    running = errors.new_zeros(len(errors))
    for t in reversed(range(errors.shape[1])):
        running = (errors[:, t] + gamma * gae_lambda * running).masked_fill(~response_mask[:, t], 0.0)
        advantages[:, t] = running
    return advantages, advantages + values


def group_centered(scores: Float[Tensor, " B"], group_size: int) -> Float[Tensor, " B"]:
    """A_i = r_i − mean of the group. Groups are consecutive rows; each sums to 0.

    Invariant to a shift of the scores; exactly 0 in a group of equal fp32 scores.

    Raises:
        ValueError: when ``group_size`` is below 2 or does not divide the rows.

    Source: Liu et al. (2025), arXiv:2503.20783, section 3.2; GRPO (arXiv:2402.03300) also divides by the sd.
    """
    groups = _groups(scores, group_size)
    return _rows(groups - groups.mean(1, keepdim=True), scores)


def group_scale(scores: Float[Tensor, " B"], group_size: int, eps: Number = GROUP_EPSILON) -> Float[Tensor, " B"]:
    """The divisor of ``group_zscore`` for each row: the sd of its group (ddof 1) + eps.

    Raises:
        ValueError: when ``group_size`` is below 2 or does not divide the rows.
    """
    groups = _groups(scores, group_size)
    return _rows((groups.std(1, keepdim=True) + eps).expand_as(groups), scores)


def group_zscore(scores: Float[Tensor, " B"], group_size: int, eps: Number = GROUP_EPSILON) -> Float[Tensor, " B"]:
    """A_i = (r_i − mean) / (sd + eps) within the group, sd with ddof 1.

    Invariant to shift and, as long as sd ≫ eps, to scale: every prompt weighs alike.

    Raises:
        ValueError: when ``group_size`` is below 2 or does not divide the rows.

    Source: Shao et al. (2024), arXiv:2402.03300, section 4.1.2.
    """
    return group_centered(scores, group_size) / group_scale(scores, group_size, eps)


def group_whiten(
    advantages: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    group_size: int,
    eps: Number = GROUP_EPSILON,
) -> Float[Tensor, "B T"]:
    """(A − mean) / (sd + eps) over the real tokens of each group, sd with ddof 1; 0 on padding.

    What ``group_zscore`` is to scores. Both steps are needed: a critic's error is shared by a whole group,
    and divided by the sd alone it would explode as soon as the group's responses are alike.

    Raises:
        ValueError: when ``group_size`` is below 2 or does not divide the rows.
    """
    _check_groups(advantages, group_size)
    rows = advantages.shape[0] // group_size
    mask = response_mask.reshape(rows, -1)
    values = at_least_float32(advantages).reshape(rows, -1)
    centred = (values - masked_mean(values, mask, dim=1).unsqueeze(1)).masked_fill(~mask, 0.0)
    variance = centred.square().sum(1, keepdim=True) / (mask.sum(1, keepdim=True) - 1).clamp(min=1)
    return (centred / (variance.sqrt() + eps)).view_as(advantages)


def leave_one_out(scores: Float[Tensor, " B"], group_size: int) -> Float[Tensor, " B"]:
    """A_i = r_i − mean of the others of the group = K/(K−1) · ``group_centered``.

    Raises:
        ValueError: when ``group_size`` is below 2 or does not divide the rows.

    Source: Kool et al. (2019); Ahmadian et al. (2024), arXiv:2402.14740.
    """
    groups = _groups(scores, group_size)
    others = (groups.sum(1, keepdim=True) - groups) / (group_size - 1)
    return _rows(groups - others, scores)


def _groups(scores: Tensor, group_size: int) -> Tensor:
    """Scores (B,) as (B / K, K) in float64, where sums of a few fp32 scores are exact."""
    _check_groups(scores, group_size)
    return scores.to(torch.float64).view(-1, group_size)


def _check_groups(rows: Tensor, group_size: int) -> None:
    if group_size < 2:
        raise ValueError(f"group_size is {group_size}: credit against a group needs 2 responses a prompt or more")
    if rows.shape[0] % group_size:
        raise ValueError(f"{rows.shape[0]} responses do not make whole groups of {group_size}")


def _rows(groups: Tensor, scores: Tensor) -> Tensor:
    """Groups back to rows, in at least fp32."""
    return groups.reshape(-1).to(at_least_float32(scores).dtype)
