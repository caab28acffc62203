"""From logits to what a policy says about tokens."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from gemma_alignment.objectives.precision import Number, at_least_float32


def token_logprobs(
    logits: Float[Tensor, "B T V"], tokens: Int[Tensor, "B T"], temperature: Number = 1.0
) -> Float[Tensor, "B T"]:
    """Log-probability of each token, log softmax(logits / temperature)[token], in at least fp32.

    Args:
        logits: (B, T, V); position t predicts ``tokens[:, t]``. On the same logits a log-softmax in
            bf16 is off by up to .06 nat.
        tokens: (B, T).
        temperature: that of sampling, in every pass: at another one the ratios are not 1.

    Raises:
        ValueError: when the temperature is not above 0.
    """
    return _log_softmax(logits, temperature).gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1)


def entropy(logits: Float[Tensor, "B T V"], temperature: Number = 1.0) -> Float[Tensor, "B T"]:
    """Entropy −Σ_v p_v log p_v of softmax(logits / temperature), in nats; banned tokens (−inf) add 0.

    Raises:
        ValueError: when the temperature is not above 0.
    """
    logprobs = _log_softmax(logits, temperature)
    probabilities = logprobs.exp()
    return -(probabilities * logprobs.masked_fill(probabilities == 0, 0.0)).sum(-1)


def logprobs_with_gradient(
    logits: Float[Tensor, "N V"], tokens: Int[Tensor, " N"], temperature: Number = 1.0
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, "N V"]]:
    """Log-probability and entropy as above, and ∂ log π(token) / ∂ logits = (1[v = token] − π_v) / temperature.

    Raises:
        ValueError: when the temperature is not above 0.
    """
    logprobs = _log_softmax(logits, temperature)
    chosen = logprobs.gather(1, tokens.long()[:, None])
    probabilities = logprobs.exp()
    spread = -torch.linalg.vecdot(probabilities, logprobs.clamp_(min=torch.finfo(logprobs.dtype).min))
    gradient = probabilities.neg_().scatter_add_(1, tokens.long()[:, None], torch.ones_like(chosen))
    return chosen[:, 0], spread, gradient.div_(temperature) if temperature != 1 else gradient


def _log_softmax(logits: Float[Tensor, "*shape V"], temperature: Number) -> Float[Tensor, "*shape V"]:
    if temperature <= 0:
        raise ValueError(f"temperature is {temperature}, but must be above 0")
    scaled = at_least_float32(logits)
    return torch.log_softmax(scaled if temperature == 1 else scaled / temperature, dim=-1)
