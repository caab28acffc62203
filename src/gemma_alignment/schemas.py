"""The frozen dataclasses that cross the borders between the parts.

Shapes: B sequences, P prompt positions, T response positions, K samples of one prompt.
``response_mask`` is True on real response tokens, the ending token included, always.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Verdict = Literal["first", "second", "tie"]


def order_by_prompt(tokens: Tensor, mask: Tensor) -> Tensor:
    """Row numbers (B,) with equal prompts side by side and prompts of like length near each other.

    Parts cut from this order share most of their prompts (a packed forward computes each once) and carry
    little padding.
    """
    number = torch.unique(tokens, dim=0, return_inverse=True)[1]
    return torch.argsort(mask.sum(1) * len(tokens) + number, stable=True)


@dataclass(frozen=True)
class PreferencePair:
    """Two answers to one prompt, the better one first."""

    prompt_id: str
    prompt: str
    chosen: str
    rejected: str
    score_chosen: float
    score_rejected: float


@dataclass(frozen=True)
class Experience:
    """What one iteration sampled and scored, before any gradient.

    Rows stand in groups: the ``group_size`` responses of one prompt are consecutive.
    """

    prompt_tokens: Int[Tensor, "B P"]
    """Left-padded prompt ids."""
    prompt_mask: Bool[Tensor, "B P"]
    response_tokens: Int[Tensor, "B T"]
    """Right-padded response ids."""
    response_mask: Bool[Tensor, "B T"]
    ended: Bool[Tensor, " B"]
    """False where the response was cut off before an ending token."""
    scores: Float[Tensor, " B"]
    """Reward-model scores after the configured normalisation: what credit is assigned from."""
    raw_scores: Float[Tensor, " B"]
    """Reward-model scores in the unit of its own fixed normaliser: what is reported."""
    old_logprobs: Float[Tensor, "B T"]
    ref_logprobs: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"] | None
    """The critic's estimates before each token; None without a critic."""
    group_size: int
    prompt_ids: tuple[str, ...] = ()
    """One id a row, to name a row in an error."""
    sampler_gap: Float[Tensor, " B"] | None = None
    """Largest gap of a token's log-probability, sampler against training forward; None where only one was computed."""


@dataclass(frozen=True)
class Credit:
    """How much better each token was than expected."""

    advantages: Float[Tensor, "B T"]
    returns: Float[Tensor, "B T"] | None
    """Targets of the critic, before any whitening; None without a critic."""


@dataclass(frozen=True)
class Minibatch:
    """The rows of one optimizer step, or a part of them."""

    prompt_tokens: Int[Tensor, "B P"]
    prompt_mask: Bool[Tensor, "B P"]
    response_tokens: Int[Tensor, "B T"]
    response_mask: Bool[Tensor, "B T"]
    old_logprobs: Float[Tensor, "B T"]
    ref_logprobs: Float[Tensor, "B T"]
    advantages: Float[Tensor, "B T"]
    values: Float[Tensor, "B T"] | None
    returns: Float[Tensor, "B T"] | None
    kl_coef: float
    prompt_ids: tuple[str, ...] = ()
    """One id a row, to name a row in an error."""

    def __len__(self) -> int:
        """The number of rows."""
        return self.response_mask.shape[0]

    def select(self, rows: Tensor) -> "Minibatch":
        """The given rows, with padding that none of them needs cut away."""
        parts = {f.name: getattr(self, f.name) for f in fields(self)}
        chosen: dict[str, Any] = {k: v[rows] if isinstance(v, Tensor) else v for k, v in parts.items()}
        prompt = int(chosen["prompt_mask"].sum(1).max())
        response = max(1, int(chosen["response_mask"].sum(1).max()))
        for name, value in chosen.items():
            if isinstance(value, Tensor):
                chosen[name] = value[:, -prompt:] if name.startswith("prompt_") else value[:, :response]
        if self.prompt_ids:
            chosen["prompt_ids"] = tuple(self.prompt_ids[i] for i in rows.tolist())
        return replace(self, **chosen)

    def split(self, size: int) -> Iterator["Minibatch"]:
        """Parts of at most ``size`` rows, those of a prompt side by side."""
        order = order_by_prompt(self.prompt_tokens, self.prompt_mask)
        for start in range(0, len(self), size):
            yield self.select(order[start : start + size])


@dataclass(frozen=True)
class Normalizer:
    """What a loss is divided by: counts over the whole optimizer step, never over a micro-batch."""

    tokens: int
    sequences: int
    max_length: int
    """The longest response that generation allows: the divisor of ``constant_length``."""

    @classmethod
    def of(cls, minibatch: Minibatch, max_length: int) -> "Normalizer":
        """Count the real response tokens and the rows of ``minibatch``."""
        return cls(int(minibatch.response_mask.sum()), len(minibatch), max_length)


@dataclass(frozen=True)
class TrainingState:
    """What training goes on from after an iteration: everything that the next one depends on.

    Chance is not part of it, every generator is derived from seed and iteration; nor is the learning
    rate, which follows from the iteration.
    """

    iteration: int
    tensors: Mapping[str, Mapping[str, Tensor]]
    """``policy`` and ``critic``: what the role trains; ``{role}_optimizer``: its moments and steps."""
    numbers: Mapping[str, Mapping[str, int | float]]
    """``kl_controller``, ``score_normalizer``, ``old_logprobs``, ``packing`` and ``budget``; elsewhere ``packing``."""


class Mark(NamedTuple):
    """How far a file of lines has come: ``head --bytes=BYTES FILE | sha256sum`` gives the second from the first."""

    bytes: int
    sha256: str


PLANNED = "planned"
"""Key of ``timing.jsonl``: how many iterations there will be, where the parameters do not say so; for the progress."""


@dataclass(frozen=True)
class UpdateRecord:
    """What one iteration of the loop reports: the loop yields it and writes nothing."""

    iteration: int
    metrics: Mapping[str, float]
    """Reproducible numbers: the line of ``history.jsonl``."""
    timing: Mapping[str, float]
    """Clock and memory readings: the line of ``timing.jsonl``."""
    samples: Sequence[Mapping[str, object]] = field(default_factory=tuple)
    state: TrainingState | None = None
    """A copy of where training stands, for a loop that can go on from it."""


@dataclass(frozen=True)
class Judgement:
    """One call of a judge: the verdict on one ordering of two answers."""

    prompt_id: str
    system_a: str
    system_b: str
    order: Literal["ab", "ba"]
    verdict: Verdict | None
    """By slot: "first" means the answer shown first. None is an unparsed reply."""
    reply: str
    model: str
    prompt_version: str
    cost: float = 0.0
