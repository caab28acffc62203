"""From hidden states to log-probabilities and scalars."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gemma_alignment.objectives.logprobs import entropy, token_logprobs

POSITIONS = 2048
"""Most positions whose logits exist at a time."""
LOGITS = 2**23
"""Most logits that exist at a time: 32 MiB a copy in fp32, 32 positions of a vocabulary of 256,000."""


WIDE = 2**24
"""Most numbers of the MLP's width in one pass over prompts: 32 MiB a copy in bf16, 1,024 positions of 16,384."""


def positions_at_a_time(vocabulary: int) -> int:
    """How many positions' logits may exist at once, so that a large vocabulary does not need more memory."""
    return max(1, min(POSITIONS, LOGITS // vocabulary))


def prompts_at_a_time(length: int, intermediate: int) -> int:
    """How many prompts of so many tokens go through the model at once before decoding, so that memory does not grow."""
    return max(1, WIDE // (max(1, length) * intermediate))


class ScalarHead(nn.Module):
    """One number per position, in fp32: w · h + b, with w ~ N(0, 1/(d+1)) and b = 0 at the start.

    A head that starts at zero (the critic's) predicts 0 everywhere, the mean of normalised scores.
    """

    def __init__(self, hidden_size: int, zero: bool, generator: torch.Generator):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(hidden_size))
        self.bias = nn.Parameter(torch.zeros(()))
        if not zero:
            with torch.no_grad():
                self.weight.normal_(0.0, 1 / math.sqrt(hidden_size + 1), generator=generator)

    def forward(self, hidden: Tensor) -> Tensor:
        """(..., d) -> (...)."""
        return hidden.float() @ self.weight + self.bias


def chunked_logprobs(
    hidden: Tensor, tokens: Tensor, head: Callable[[Tensor], Tensor], temperature: float, chunk: int
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of ``tokens`` without ever holding all logits.

    The hidden states (N, d) go through the head ``chunk`` positions at a time; where gradients are
    needed and more than one chunk exists, each chunk is recomputed in the backward pass, so that at
    most ``chunk`` × V logits exist at any time. The entropy carries no gradient.

    Returns: two tensors (N,).
    """

    def piece(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logits = head(states)
        with torch.no_grad():
            spread = entropy(logits.detach()[None], temperature)[0]
        return token_logprobs(logits[None], targets[None], temperature)[0], spread

    parts = []
    for start in range(0, hidden.shape[0], chunk):
        states, targets = hidden[start : start + chunk], tokens[start : start + chunk]
        if torch.is_grad_enabled() and hidden.shape[0] > chunk:
            parts.append(checkpoint(piece, states, targets, use_reentrant=False))
        else:
            parts.append(piece(states, targets))
    logprobs, entropies = zip(*parts, strict=True)
    return torch.cat(logprobs), torch.cat(entropies)
