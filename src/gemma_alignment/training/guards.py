"""What stops an update before it harms a weight: each error names the iteration, the tensor and the prompts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gemma_alignment.errors import UserError
from gemma_alignment.schemas import Experience, Minibatch

EXACT_TOLERANCE = 1e-4
"""Largest gap of a token's log-probability in fp32, in nats; usual: below 1e-5."""
ROUNDED_TOLERANCE = 0.02
"""The same in bf16 and in 4 bits."""
SHOWN = 3
"""Prompt ids that an error names."""


def check_finite(experience: Experience, iteration: int) -> None:
    """Stop before an update on a NaN or an infinity in what was sampled.

    Raises:
        UserError: names the iteration, the first bad quantity and its prompt ids.
    """
    for name in ("scores", "old_logprobs", "ref_logprobs", "values"):
        if rows := _bad_rows(getattr(experience, name)):
            raise _not_finite(f"Iteration {iteration}", name, experience.prompt_ids, rows)


def check_loss(loss: Tensor, outputs: Mapping[str, Tensor], micro: Minibatch, where: str) -> None:
    """Stop before a step on a loss, or an output of the model behind it, that is not finite.

    Args:
        loss: the micro-batch's.
        outputs: what the model gave for its responses, by name, (B, T) each.
        micro: the micro-batch.
        where: method, iteration and role.

    Raises:
        UserError: names the first bad tensor and the prompt ids of its bad rows; of every row, where only
            the loss is bad.
    """
    real = {name: tensor.masked_fill(~micro.response_mask, 0.0) for name, tensor in outputs.items()}
    if bool(torch.isfinite(loss)) and all(bool(torch.isfinite(tensor).all()) for tensor in real.values()):
        return
    for name, tensor in {**real, "advantages": micro.advantages, "returns": micro.returns}.items():
        if rows := _bad_rows(tensor):
            raise _not_finite(where, name, micro.prompt_ids, rows)
    raise _not_finite(where, "loss", micro.prompt_ids, range(len(micro)))


def check_first_ratio(logprobs: Tensor, micro: Minibatch, iteration: int, exact: bool) -> None:
    """Before the first step of an iteration, π / π_old must be 1, in fp32 (``exact``) nearly to the last bit.

    Raises:
        UserError: names the likely causes.
    """
    with torch.no_grad():
        gap = float(((logprobs - micro.old_logprobs).abs() * micro.response_mask).max())
    if not gap <= (EXACT_TOLERANCE if exact else ROUNDED_TOLERANCE):
        raise UserError(
            f"Iteration {iteration}: log-probabilities differ by {gap:.2g} nats from those taken before the "
            "update, where they must be equal. Likely causes: dropout left on, an adapter switched in between, "
            "another temperature, or padding that reaches the attention."
        )


def named(prompt_ids: Sequence[str], rows: Sequence[int]) -> str:
    """``prompts p3, p1, p7 and 4 more``: those of the rows, each once."""
    ids = list(dict.fromkeys(prompt_ids[row] if prompt_ids else str(row) for row in rows))
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return f"prompt{'s' if len(ids) > 1 else ''} {', '.join(ids[:SHOWN])}{more}"


def _bad_rows(tensor: Tensor | None) -> list[int]:
    if tensor is None or bool(torch.isfinite(tensor).all()):
        return []
    return (~torch.isfinite(tensor)).reshape(len(tensor), -1).any(1).nonzero()[:, 0].tolist()


def _not_finite(where: str, name: str, prompt_ids: Sequence[str], rows: Sequence[int]) -> UserError:
    return UserError(
        f"{where}: {name} is not finite for the {named(prompt_ids, rows)}. The optimizer did not step. "
        "The usual causes are a learning rate that is too high and a damaged adapter."
    )
