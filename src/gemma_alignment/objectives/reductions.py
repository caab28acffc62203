"""One number from a loss per token: three ways to weigh long answers against short ones.

Each divides a sum by what the WHOLE optimizer step counts, so that the gradients of micro-batches add
up to that of the step however it is split. The divisor is a ``Normalizer``, or the plain number.
"""

from collections.abc import Callable

from jaxtyping import Bool, Float
from torch import Tensor

from gemma_alignment.objectives.masking import masked_mean, masked_sum
from gemma_alignment.objectives.precision import Number
from gemma_alignment.schemas import Normalizer


def token_mean(
    x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], normalizer: Normalizer | Number
) -> Float[Tensor, ""]:
    """Σ_i Σ_t x_it / tokens: every token weighs the same, so a long response weighs more.

    Args:
        x: a loss (B, T) per token.
        mask: True on real response tokens.
        normalizer: the step's counts, or its number of real tokens.

    Source: the "DAPO" aggregation, Yu et al. (2025), arXiv:2503.14476, section 3.3.
    """
    return masked_sum(x, mask) / _divisor(normalizer, lambda n: n.tokens)


def sequence_mean(
    x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], normalizer: Normalizer | Number
) -> Float[Tensor, ""]:
    """Σ_i (Σ_t x_it / length_i) / sequences: every response weighs the same.

    A token of a short response weighs more: with A > 0 this favours short answers, with A < 0 long ones.

    Args:
        x: a loss (B, T) per token.
        mask: True on real response tokens.
        normalizer: the step's counts, or its number of responses.

    Source: GRPO, Shao et al. (2024), arXiv:2402.03300, equation 3.
    """
    return masked_mean(x, mask, dim=1).sum() / _divisor(normalizer, lambda n: n.sequences)


def constant_length(
    x: Float[Tensor, "B T"], mask: Bool[Tensor, "B T"], normalizer: Normalizer | Number
) -> Float[Tensor, ""]:
    """Σ_i Σ_t x_it / (sequences · max_length): neither the response's nor the batch's length matters.

    Args:
        x: a loss (B, T) per token.
        mask: True on real response tokens.
        normalizer: the step's counts, or the product of its responses and the longest length allowed.

    Source: Dr. GRPO, Liu et al. (2025), arXiv:2503.20783, section 3.1 and listing 1.
    """
    return masked_sum(x, mask) / _divisor(normalizer, lambda n: n.sequences * n.max_length)


REDUCTIONS = {"token_mean": token_mean, "sequence_mean": sequence_mean, "constant_length": constant_length}


def _divisor(normalizer: Normalizer | Number, count: Callable[[Normalizer], int]) -> Number:
    divisor = count(normalizer) if isinstance(normalizer, Normalizer) else normalizer
    if divisor <= 0:
        raise ValueError(f"a loss is divided by {divisor}: the optimizer step has no real token")
    return divisor
