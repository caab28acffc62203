"""Estimators of KL(policy ‖ reference) from single tokens that the policy sampled.

Source: J. Schulman, "Approximating KL Divergence" (2020), http://joschu.net/blog/kl-approx.html.
With x = log π(token) − log π_ref(token) and the token drawn from π:

====  ====================  ========  =============================================
      value                 bias      gradient of its expectation when put in a loss
====  ====================  ========  =============================================
k1    x                     none      0: the score function has mean 0
k2    ½ x²                  small     that of KL(policy ‖ reference)
k3    exp(−x) − 1 + x       none      that of KL(reference ‖ policy), the other direction
====  ====================  ========  =============================================

The gradients hold at the policy that sampled. Nothing is clamped: a clamp would change what is trained on.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from gemma_alignment.objectives.precision import at_least_float32


def k1(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """x = log π − log π_ref, elementwise, in nats: unbiased, of either sign."""
    return at_least_float32(logprobs) - at_least_float32(ref_logprobs)


def k2(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """½ x² with x = log π − log π_ref, elementwise, in nats: biased, never negative."""
    return 0.5 * k1(logprobs, ref_logprobs).square()


def k3(logprobs: Float[Tensor, "*shape"], ref_logprobs: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """exp(−x) − 1 + x with x = log π − log π_ref, elementwise, in nats: unbiased and never negative."""
    x = k1(logprobs, ref_logprobs)
    return torch.expm1(-x) + x
