"""A world so small that a policy is a table: what a method needs to be read and tested without a model.

Two prompts, four tokens of which 0 ends a response, at most four tokens a response. For each prompt one
response is planted as the best: it scores 4, one point for every position that agrees.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import yaml
from torch import Tensor

from gemma_alignment.config import build
from gemma_alignment.objectives.kl import k1
from gemma_alignment.schemas import Experience, Minibatch, Normalizer
from gemma_alignment.training.methods import METHODS
from gemma_alignment.training.score_normalization import score_normalizer

CONF = Path(__file__).parents[2] / "conf" / "base"
ENDING, VOCABULARY, LONGEST = 0, 4, 4
PLANTED = torch.tensor([[1, 2, 3, ENDING], [3, 3, ENDING, ENDING]])
"""The second one is over after three tokens: at the fourth position nothing sampled is what agrees."""
BEST = 4.0


def configured(name, **changes):
    """The method as its parameters file sets it, with changes."""
    values = yaml.safe_load((CONF / f"parameters_{name}.yml").read_text(encoding="utf-8"))[name]
    return build(METHODS[name], {**values, **changes}, name)


def score(prompts: Tensor, responses: Tensor, mask: Tensor) -> Tensor:
    """How many of the four positions agree with the planted response, nothing sampled counting as the ending."""
    padded = responses.masked_fill(~mask, ENDING)
    return (padded == PLANTED[prompts]).sum(1).float()


@dataclass
class Tables:
    """Policy and critic: logits [prompt, position, last token, token] and values [prompt, position, last]."""

    policy: Tensor = field(default_factory=lambda: torch.zeros(2, LONGEST, VOCABULARY, VOCABULARY))
    critic: Tensor = field(default_factory=lambda: torch.zeros(2, LONGEST, VOCABULARY))

    def logprobs(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """(B,), (B, T) -> (B, T)."""
        logits = self.policy[prompts[:, None], torch.arange(responses.shape[1]), self._before(responses)]
        return logits.log_softmax(-1).gather(-1, responses[..., None])[..., 0]

    def values(self, prompts: Tensor, responses: Tensor) -> Tensor:
        """(B,), (B, T) -> (B, T), each before its token."""
        return self.critic[prompts[:, None], torch.arange(responses.shape[1]), self._before(responses)]

    @staticmethod
    def _before(responses: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(responses[:, :1]), responses[:, :-1]], 1)

    @torch.no_grad()
    def sample(self, prompts: Tensor, chance: torch.Generator) -> tuple[Tensor, Tensor]:
        """Responses (B, T), padded with the ending token, and their mask."""
        last, rows = torch.zeros_like(prompts), []
        for t in range(LONGEST):
            last = torch.multinomial(self.policy[prompts, t, last].softmax(-1), 1, generator=chance)[:, 0]
            rows.append(last)
        responses = torch.stack(rows, 1)
        ended_before = (responses == ENDING).cumsum(1) - (responses == ENDING).int() > 0
        return responses.masked_fill(ended_before, ENDING), ~ended_before


def experience(
    tables: Tables, method, count: int, chance: torch.Generator, normalize=lambda s: s, sign: float = 1.0
) -> Experience:
    """``count`` responses in whole groups, scored; the reference is the uniform policy."""
    prompts = torch.arange(count // method.group_size).remainder(2).repeat_interleave(method.group_size)
    responses, mask = tables.sample(prompts, chance)
    raw = sign * score(prompts, responses, mask)
    with torch.no_grad():
        old, values = tables.logprobs(prompts, responses), tables.values(prompts, responses)
    return Experience(
        prompt_tokens=prompts[:, None],
        prompt_mask=torch.ones_like(prompts[:, None], dtype=torch.bool),
        response_tokens=responses,
        response_mask=mask,
        ended=((responses == ENDING) & mask).any(1),
        scores=normalize(raw),
        raw_scores=raw,
        old_logprobs=old,
        ref_logprobs=torch.full_like(old, 1 / VOCABULARY).log(),
        values=values if method.needs_critic else None,
        group_size=method.group_size,
    )


def minibatch(method, found: Experience, kl_coef: float) -> Minibatch:
    """The experience with its credit."""
    credit = method.assign_credit(found, kl_coef)
    return Minibatch(
        found.prompt_tokens, found.prompt_mask, found.response_tokens, found.response_mask,
        found.old_logprobs, found.ref_logprobs, credit.advantages, found.values, credit.returns, kl_coef,
    )  # fmt: skip


def losses(tables: Tables, method, micro: Minibatch, normalizer: Normalizer):
    """The losses and statistics of one micro-batch: of the policy, and of the critic where there is one."""
    prompts = micro.prompt_tokens[:, 0]
    found = [method.policy_loss(tables.logprobs(prompts, micro.response_tokens), micro, normalizer)]
    if method.needs_critic:
        found.append(method.value_loss(tables.values(prompts, micro.response_tokens), micro, normalizer))
    return found


def train(method, *, iterations=50, responses=48, kl_coef=0.01, rate=0.15, seed=0, sign=1.0) -> dict[str, float]:
    """A small loop with the same budget for every method; returns the last ten iterations' means."""
    tables, chance = Tables(), torch.Generator().manual_seed(seed)
    tables.policy.requires_grad_()
    tables.critic.requires_grad_()
    optimizer = torch.optim.Adam([tables.policy, tables.critic], lr=rate, eps=1e-5)
    normalizer = score_normalizer(method.normalize_scores, 0.0, 1.0, 0.95)
    history = []
    for _ in range(iterations):
        found = experience(tables, method, responses, chance, normalizer.normalize, sign)
        step = minibatch(method, found, kl_coef)
        for _ in range(method.update_epochs):
            counts = Normalizer.of(step, LONGEST)
            for micro in step.split(responses // 2):
                sum(loss for loss, _ in losses(tables, method, micro, counts)).backward()
            optimizer.step()
            optimizer.zero_grad()
        normalizer.update(found.raw_scores)
        divergence = (k1(found.old_logprobs, found.ref_logprobs) * found.response_mask).sum(1).mean()
        history.append({"score": float(found.raw_scores.mean()) * sign, "kl": float(divergence)})
    return {key: sum(h[key] for h in history[-10:]) / 10 for key in history[0]} | {"start": history[0]["score"]}


def with_padding(found: Experience, columns: int) -> Experience:
    """The same responses with garbage in further columns."""
    rows = len(found.scores)
    changes = {
        name: torch.cat([getattr(found, name), filler], 1)
        for name, filler in {
            "response_tokens": torch.full((rows, columns), 3),
            "response_mask": torch.zeros(rows, columns, dtype=torch.bool),
            "old_logprobs": torch.full((rows, columns), 55.0),
            "ref_logprobs": torch.full((rows, columns), torch.nan),
        }.items()
    }
    if found.values is not None:
        changes["values"] = torch.cat([found.values, torch.full((rows, columns), torch.nan)], 1)
    return replace(found, **changes)
