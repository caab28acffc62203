"""Losses of a token or of a pair, to be minimised; ``reductions`` makes one number of them."""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from gemma_alignment.objectives.precision import Number, at_least_float32


def probability_ratio(
    logprobs: Float[Tensor, "*shape"], old_logprobs: Float[Tensor, "*shape"]
) -> Float[Tensor, "*shape"]:
    """π / π_old = exp(log π − log π_old), elementwise, in at least fp32."""
    return (at_least_float32(logprobs) - at_least_float32(old_logprobs)).exp()


def clipped_surrogate(
    logprobs: Float[Tensor, "*shape"],
    old_logprobs: Float[Tensor, "*shape"],
    advantages: Float[Tensor, "*shape"],
    clip_epsilon: Number,
    clip_epsilon_high: Number | None = None,
) -> Float[Tensor, "*shape"]:
    """−min(ρ A, clip(ρ, 1 − ε, 1 + ε_high) A) with ρ = π / π_old, per token.

    The gradient is 0 where ρ has already left the interval in the direction that A wants, and
    nowhere else:  A > 0 and ρ > 1 + ε_high,  or  A < 0 and ρ < 1 − ε.

    Args:
        logprobs: of the policy that learns.
        old_logprobs: of the policy that sampled.
        advantages: of each token.
        clip_epsilon: ε; ε_high too where ``clip_epsilon_high`` is None.
        clip_epsilon_high: a wider upper side ("clip higher").

    Source: Schulman et al. (2017), arXiv:1707.06347, equation 7;
    for ε_high Yu et al. (2025), arXiv:2503.14476.
    """
    high = clip_epsilon if clip_epsilon_high is None else clip_epsilon_high
    ratio = probability_ratio(logprobs, old_logprobs)
    clipped = ratio.clamp(1 - clip_epsilon, 1 + high)
    return torch.maximum(-advantages * ratio, -advantages * clipped)


def clipped_value_error(
    values: Float[Tensor, "*shape"],
    old_values: Float[Tensor, "*shape"],
    returns: Float[Tensor, "*shape"],
    value_clip: Number,
) -> Float[Tensor, "*shape"]:
    """½ max((V − R)², (V_old + clip(V − V_old, ±value_clip) − R)²), per token.

    The gradient is 0 where V has moved further than ``value_clip`` from V_old towards R and
    the clipped value is still the worse one. ``value_clip`` is in the unit of the scores.

    Source: the PPO reference implementation (openai/baselines, ppo2);
    Engstrom et al. (2020), arXiv:2005.12729.
    """
    values, old_values = at_least_float32(values), at_least_float32(old_values)
    near = old_values + (values - old_values).clamp(-value_clip, value_clip)
    return 0.5 * torch.maximum((values - returns).square(), (near - returns).square())


def bradley_terry(
    chosen_scores: Float[Tensor, " B"],
    rejected_scores: Float[Tensor, " B"],
    margin: Float[Tensor, " B"] | Number | None = None,
) -> Float[Tensor, " B"]:
    """−log σ(r_c − r_r − margin) of each pair: the negative log-likelihood of the preference.

    Adding one number to both scores changes nothing: only differences are learnt.

    Raises:
        ValueError: when shapes differ: (B,) against (B, 1) would make B² pairs.

    Source: Bradley and Terry (1952); the margin is in Touvron et al. (2023), arXiv:2307.09288, equation 2.
    """
    shapes = {tuple(x.shape) for x in (chosen_scores, rejected_scores, margin) if isinstance(x, Tensor)}
    if len(shapes) > 1:
        raise ValueError(f"scores and margin of one batch of pairs have different shapes: {sorted(shapes)}")
    difference = at_least_float32(chosen_scores) - at_least_float32(rejected_scores)
    return -logsigmoid(difference if margin is None else difference - margin)
