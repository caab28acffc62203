"""A policy on held-out prompts: KL, length, score, gold score and perplexity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gemma_alignment.modeling.protocols import Role, Text
from gemma_alignment.objectives.kl import k1
from gemma_alignment.rollout.experience import role_logprobs, rollout, score
from gemma_alignment.training.guards import check_measured
from gemma_alignment.training.supervised import perplexity

Gold = Callable[[str, str], float]
"""True quality of (prompt, response), where the world knows it."""


@dataclass(frozen=True)
class HeldOut:
    """What a policy is evaluated on; the same rows in the same order every time."""

    prompts: Sequence[tuple[str, str]]
    """(prompt_id, text)."""
    chosen: Sequence[tuple[list[int], list[int]]]
    """Token ids of held-out prompts and their chosen responses."""
    chosen_ids: Sequence[str] = ()
    """The prompt_id of each, to name one in an error."""


def answer(
    model: Any, chat: Text, prompts: Sequence[tuple[str, str]], *, role: Role, settings: Any,
    scale: tuple[float, float], penalty: float, size: int, generator: torch.Generator, gold: Gold | None,
    where: str,
) -> tuple[list[dict[str, Any]], Any]:  # fmt: skip
    """One response to each prompt as rows of ``responses.jsonl``, and the rollout itself.

    Raises:
        UserError: names ``where`` and the prompts whose score is not finite.
    """
    found = rollout(model, chat, [text for _, text in prompts], 1, settings, generator, role)
    scores = score(model, found.sequences, found.ended, scale, penalty, size)
    check_measured({"scores": scores}, [prompt_id for prompt_id, _ in prompts], where)
    rows = []
    for i, (prompt_id, text) in enumerate(prompts):
        mask = found.sequences.response_mask[i]
        response = chat.decode_response(found.sequences.response_tokens[i][mask].tolist())
        row = {
            "prompt_id": prompt_id, "prompt": text, "response": response,
            "reward_model_score": round(float(scores[i]), 6), "num_tokens": int(mask.sum()),
            "ended": bool(found.ended[i]),
        }  # fmt: skip
        if gold is not None:
            row["gold_score"] = round(float(gold(text, response)), 6)
        rows.append(row)
    return rows, found


def evaluate_policy(
    model: Any, chat: Text, held_out: HeldOut, *, settings: Any, scale: tuple[float, float], penalty: float,
    size: int, generator: torch.Generator, gold: Gold | None, where: str,
) -> tuple[dict[str, float], list[dict[str, Any]]]:  # fmt: skip
    """The ``eval/*`` metrics of the policy as it is now, and the responses they were read from.

    KL is the mean over responses of Σ_t k1, in nats; perplexity that of held-out chosen responses.

    Raises:
        UserError: names ``where``, the quantity that is not finite and its prompts.
    """
    rows, found = answer(
        model, chat, held_out.prompts, role="policy", settings=settings, scale=scale, penalty=penalty, size=size,
        generator=generator, gold=gold, where=where,
    )  # fmt: skip
    batch = found.sequences
    policy = role_logprobs(model, "policy", batch, settings.temperature, size)
    reference = role_logprobs(model, "reference", batch, settings.temperature, size)
    check_measured({"logprobs": policy, "ref_logprobs": reference}, [row["prompt_id"] for row in rows], where)
    count = len(rows)
    metrics = {
        "eval/kl_to_reference": float((k1(policy, reference) * batch.response_mask).sum()) / count,
        "eval/response_length": float(batch.response_mask.sum()) / count,
        "eval/score_mean": sum(r["reward_model_score"] for r in rows) / count,
        "eval/eos_rate": float(found.ended.float().mean()),
        "eval/perplexity": perplexity(model, "policy", held_out.chosen, chat.pad_id, size, where, held_out.chosen_ids),
    }
    if gold is not None:
        metrics["eval/gold_mean"] = sum(r["gold_score"] for r in rows) / count
    return metrics, rows
