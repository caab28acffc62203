"""From hidden states to log-probabilities and scalars."""

import math
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gemma_alignment.objectives.logprobs import entropy, logprobs_with_gradient, token_logprobs

POSITIONS = 512
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


SCALES = {"logit_scale": 1, "lm_head_multiplier": 1, "logits_scaling": -1}
"""Where configurations keep a factor of the logits (Cohere, Falcon-H1, Granite) -> its power."""


def as_the_model_does(logits: Tensor, config: Any) -> Tensor:
    """Logits behind the head as an architecture scales and caps them."""
    for name, power in SCALES.items():
        factor = getattr(config, name, None)
        logits = logits * float(factor) ** power if factor else logits
    cap = getattr(config, "final_logit_softcapping", None)
    return torch.tanh(logits / cap) * cap if cap else logits


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
    hidden: Tensor, tokens: Tensor, head: Callable[[Tensor], Tensor], temperature: float, chunk: int, frozen: bool
) -> tuple[Tensor, Tensor | None]:
    """Log-probabilities (N,) of ``tokens`` without ever holding all logits, and the entropies (N,).

    The hidden states (N, d) go through the head ``chunk`` positions at a time. The entropies carry no gradient, and
    are None where no gradient is asked for: training alone reports them.

    Args:
        frozen: whether nothing in the head is trained. Then the gradient of the states is formed while the logits
            are there, and the backward pass needs none; otherwise each chunk is recomputed in the backward pass.
    """
    parts = [(hidden[start : start + chunk], tokens[start : start + chunk]) for start in range(0, len(tokens), chunk)]
    if not torch.is_grad_enabled():
        return torch.cat([_logprobs(head, *part, temperature) for part in parts]), None
    if frozen:
        found = _FrozenHead.apply(hidden, tokens, head, temperature, chunk)
        return cast(tuple[Tensor, Tensor], found)
    logprobs = torch.cat([checkpoint(_logprobs, head, *part, temperature, use_reentrant=False) for part in parts])
    with torch.no_grad():
        return logprobs, torch.cat([entropy(head(states)[None], temperature)[0] for states, _ in parts])


def _logprobs(head: Callable[[Tensor], Tensor], states: Tensor, tokens: Tensor, temperature: float) -> Tensor:
    return token_logprobs(head(states)[None], tokens[None], temperature)[0]


class _FrozenHead(torch.autograd.Function):
    """Log-probabilities and entropies; the gradient of every state is formed in the forward pass."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, tokens: Tensor, head: Callable[[Tensor], Tensor], temperature: float, chunk: int
    ) -> tuple[Tensor, Tensor]:
        logprobs, entropies = (torch.empty(len(tokens), device=hidden.device) for _ in range(2))
        gradients = torch.empty_like(hidden)
        for start in range(0, len(tokens), chunk):
            part = slice(start, start + chunk)
            states = hidden[part].detach().requires_grad_()
            with torch.enable_grad():
                logits = head(states)
            found = logprobs_with_gradient(logits.detach(), tokens[part], temperature)
            logprobs[part], entropies[part] = found[:2]
            logits.backward(found[2].to(logits.dtype))
            gradients[part] = cast(Tensor, states.grad)
        ctx.save_for_backward(gradients)
        ctx.mark_non_differentiable(entropies)
        return logprobs, entropies

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None, None]:
        (gradients,) = ctx.saved_tensors
        return (upstream[0][:, None] * gradients).to(gradients.dtype), None, None, None, None
