"""From one score for a response to a reward for each token."""

from jaxtyping import Bool, Float
from torch import Tensor

from gemma_alignment.objectives.kl import k1
from gemma_alignment.objectives.masking import last_position, masked_sum
from gemma_alignment.objectives.precision import Number, at_least_float32


def token_rewards(
    scores: Float[Tensor, " B"],
    logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    kl_coef: Number,
) -> Float[Tensor, "B T"]:
    """r_t = −kl_coef · k1_t, plus the score at the last real token; 0 on padding; no gradient.

    The last real token is the ending token, or the last one sampled where the response was cut off.

    Raises:
        ValueError: when a row has no real token: its score would be lost.

    Source: Ziegler et al. (2019), arXiv:1909.08593; Stiennon et al. (2020), arXiv:2009.01325.
    """
    rewards = (-kl_coef * k1(logprobs, ref_logprobs)).detach().masked_fill(~response_mask, 0.0)
    last = last_position(response_mask).unsqueeze(1)
    return rewards.scatter_add(1, last, at_least_float32(scores).to(rewards.dtype).detach().unsqueeze(1))


def penalised_scores(
    scores: Float[Tensor, " B"],
    logprobs: Float[Tensor, "B T"],
    ref_logprobs: Float[Tensor, "B T"],
    response_mask: Bool[Tensor, "B T"],
    kl_coef: Number,
) -> Float[Tensor, " B"]:
    """s − kl_coef · Σ_t k1_t: the whole response's penalty in its score; no gradient.

    It equals the sum over t of ``token_rewards``: what a method without a critic can use of them.

    Source: Ahmadian et al. (2024), arXiv:2402.14740.
    """
    return at_least_float32(scores).detach() - kl_coef * masked_sum(
        k1(logprobs, ref_logprobs).detach(), response_mask, dim=1
    )
