"""What stops an update before it harms a weight: each error names the iteration, the tensor and the prompts."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gemma_alignment.errors import UserError
from gemma_alignment.objectives.kl import k3
from gemma_alignment.objectives.losses import probability_ratio
from gemma_alignment.objectives.masking import masked_mean
from gemma_alignment.schemas import Experience, Minibatch

MEAN_TOLERANCE = {"fp32": 1e-5, "rounded": 0.02}
"""Largest mean of |ratio − 1|, and of the approximate KL, before the first step. Rounded: bf16 or 4 bits."""
TOKEN_TOLERANCE = {"fp32": 1e-4, "rounded": 0.5}
"""Largest gap of one token's log-probability, in nats: a fault in one row must not vanish in the mean."""
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
    """Before the first step of an iteration π / π_old is 1 and the KL between them 0, rounding aside.

    The mean of |π / π_old − 1| and that of k3 over real tokens may be ``MEAN_TOLERANCE``, a token's gap
    ``TOKEN_TOLERANCE``: in bf16 a token may differ by .06 nats between two forwards that split the rows
    into other micro-batches, and their mean by .0003 (docs/LOG.md).

    Args:
        logprobs: (B, T) of the policy that is about to learn.
        micro: part of the iteration's first minibatch.
        iteration: for the message.
        exact: whether the model computes in fp32 and nothing is quantised.

    Raises:
        UserError: names the likely causes.
    """
    width, mask = "fp32" if exact else "rounded", micro.response_mask
    with torch.no_grad():
        new, old = logprobs.masked_fill(~mask, 0.0), micro.old_logprobs.masked_fill(~mask, 0.0)
        ratio, divergence = masked_mean((probability_ratio(new, old) - 1).abs(), mask), masked_mean(k3(old, new), mask)
        gap = (new - old).abs().max()
    means_agree = float(ratio) <= MEAN_TOLERANCE[width] and float(divergence) <= MEAN_TOLERANCE[width]
    if not (means_agree and float(gap) <= TOKEN_TOLERANCE[width]):
        raise UserError(
            f"Iteration {iteration}: log-probabilities differ from those taken before the update, where they must be "
            f"equal: by up to {float(gap):.2g} nats a token, the probability ratio by {float(ratio):.2g} from 1 on "
            "average. Likely causes: dropout left on, an adapter switched in between, another temperature, or "
            "padding that reaches the attention."
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
