"""What stops an update before it harms a weight: each error names the iteration, the tensor and the prompts."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from gemma_alignment.errors import UserError
from gemma_alignment.objectives.kl import k3
from gemma_alignment.objectives.losses import probability_ratio
from gemma_alignment.objectives.masking import masked_sum
from gemma_alignment.schemas import Experience, Minibatch

MEAN_TOLERANCE = {"fp32": 1e-5, "rounded": 0.02}
"""Largest mean of |ratio − 1|, and of the approximate KL, before the first step. Rounded: bf16 or 4 bits."""
TOKEN_TOLERANCE = {"fp32": 1e-4, "rounded": 0.5}
"""Largest gap of one token's log-probability, in nats: a fault in one row must not vanish in the mean."""
_CAUSES = "The usual causes are a learning rate that is too high and a damaged adapter."
_UNUSABLE = f"The weights as they are now are of no use, and nothing is written of them. {_CAUSES}"
SHOWN = 3
"""Prompt ids that an error names."""


def check_finite(experience: Experience, iteration: int) -> None:
    """Stop before an update on a NaN or an infinity in what was sampled.

    Raises:
        UserError: names the iteration, the first bad quantity and its prompt ids.
    """
    for name in ("scores", "old_logprobs", "ref_logprobs", "values", "sampler_gap"):
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


def check_outputs(outputs: Mapping[str, Tensor], prompt_ids: Sequence[str], where: str) -> None:
    """Stop before a step on an output of the model that is not finite, rows (N,) or (N, T) of ``prompt_ids``.

    Raises:
        UserError: names the first bad output and its prompts.
    """
    for name, tensor in outputs.items():
        if rows := _bad_rows(tensor):
            raise _not_finite(where, name, prompt_ids, rows)


def check_measured(outputs: Mapping[str, Tensor], prompt_ids: Sequence[str], where: str) -> None:
    """Refuse a NaN or an infinity in what a policy is judged by, rows (N,) or (N, T) of ``prompt_ids``.

    Raises:
        UserError: names the first bad quantity and its prompts.
    """
    for name, tensor in outputs.items():
        if rows := _bad_rows(tensor):
            raise UserError(f"{where}: {name} is not finite for the {named(prompt_ids, rows)}. {_UNUSABLE}")


def check_metrics(metrics: Mapping[str, float], where: str) -> None:
    """Refuse a record with a number that is not finite: what no other check names stops the run all the same.

    Raises:
        UserError: names the first such metric.
    """
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise UserError(f"{where}: {name} is {value}. {_UNUSABLE}")


class FirstRatio:
    """Before the first step of an iteration π / π_old is 1 and the KL between them 0, rounding aside.

    Asked of the iteration's whole first minibatch, whatever its micro-batches: the mean of |π / π_old − 1| and
    that of k3 over its real tokens may be ``MEAN_TOLERANCE``, the largest gap of one token ``TOKEN_TOLERANCE``. In
    bf16 a token may differ by .06 nats between two forwards that split the rows into other micro-batches, and their
    mean by .0003 (docs/LOG.md).
    """

    def __init__(self, exact: bool) -> None:
        """Begin with no token; ``exact``: whether the model computes in fp32 and nothing is quantised."""
        self._width = "fp32" if exact else "rounded"
        self._tokens, self._ratio, self._divergence = 0, 0.0, 0.0
        self._gap, self._worst = 0.0, ""

    @torch.no_grad()
    def add(self, logprobs: Tensor, micro: Minibatch) -> None:
        """Count the tokens of a micro-batch, with the log-probabilities (B, T) of the policy that is about to learn."""
        mask = micro.response_mask
        new, old = logprobs.masked_fill(~mask, 0.0), micro.old_logprobs.masked_fill(~mask, 0.0)
        self._tokens += int(mask.sum())
        self._ratio += float(masked_sum((probability_ratio(new, old) - 1).abs(), mask))
        self._divergence += float(masked_sum(k3(old, new), mask))
        gaps = (new - old).abs().amax(1)
        if not float(gaps.max()) <= self._gap:
            self._gap, self._worst = float(gaps.max()), named(micro.prompt_ids, [int(gaps.argmax())])

    def check(self, iteration: int) -> None:
        """Stop before the step where what was counted is too far off.

        Raises:
            UserError: names the prompt of the largest gap and the likely causes.
        """
        ratio, divergence = self._ratio / max(1, self._tokens), self._divergence / max(1, self._tokens)
        means_agree = ratio <= MEAN_TOLERANCE[self._width] and divergence <= MEAN_TOLERANCE[self._width]
        if not (means_agree and self._gap <= TOKEN_TOLERANCE[self._width]):
            raise UserError(
                f"Iteration {iteration}: log-probabilities differ from those taken before the update, where they must "
                f"be equal: by up to {self._gap:.2g} nats a token ({self._worst}), the probability ratio by "
                f"{ratio:.2g} from 1 on average. Likely causes: dropout left on, an adapter switched in between, "
                "another temperature, padding that reaches the attention, or a sampler that computes something else."
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
        f"{_CAUSES}"
    )
