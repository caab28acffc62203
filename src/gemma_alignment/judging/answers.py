"""Which answers meet: two systems' responses joined by prompt."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from gemma_alignment.errors import UserError
from gemma_alignment.judging.client import digest
from gemma_alignment.judging.selection import System

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answers:
    """The responses of one system, by prompt."""

    system: System
    by_prompt: Mapping[str, Mapping[str, Any]]

    @classmethod
    def of(cls, system: System, rows: Iterable[Mapping[str, Any]]) -> "Answers":
        """Index the rows of ``responses.jsonl``.

        Raises:
            UserError: a prompt is answered twice.
        """
        by_prompt: dict[str, Mapping[str, Any]] = {}
        for row in rows:
            if row["prompt_id"] in by_prompt:
                raise UserError(
                    f"{system.name}/responses.jsonl answers prompt {row['prompt_id']!r} twice: "
                    "make these responses again, by the same command with --params overwrite=true."
                )
            by_prompt[row["prompt_id"]] = row
        return cls(system, by_prompt)


def join(a: Answers, b: Answers, max_prompts: int | None, prompt_seed: int) -> list[dict[str, Any]]:
    """One row for every prompt that both answered: the two answers, and whether both have a gold score.

    With ``max_prompts``, prompts are drawn by a hash of their id, so that every pair of systems is
    judged on the same ones.

    Raises:
        UserError: the systems were given different prompts under one id.
    """
    shared = [prompt_id for prompt_id in a.by_prompt if prompt_id in b.by_prompt]
    left_out = len(a.by_prompt) + len(b.by_prompt) - 2 * len(shared)
    if left_out:
        names = a.system.name, b.system.name
        logger.warning("%s and %s: %d answers have no counterpart and are left out.", *names, left_out)
    if max_prompts is not None:
        drawn = set(sorted(shared, key=lambda prompt_id: digest(prompt_seed, prompt_id))[:max_prompts])
        shared = [prompt_id for prompt_id in shared if prompt_id in drawn]
    return [_row(a, b, prompt_id) for prompt_id in shared]


def _row(a: Answers, b: Answers, prompt_id: str) -> dict[str, Any]:
    first, second = a.by_prompt[prompt_id], b.by_prompt[prompt_id]
    if first["prompt"] != second["prompt"]:
        raise UserError(
            f"{a.system.name} and {b.system.name} answered different prompts under the id {prompt_id!r}: "
            "they come from different data. Make the older responses again, by the same command with "
            "--params overwrite=true."
        )
    return {
        "prompt_id": prompt_id,
        "prompt": first["prompt"],
        "system_a": a.system.name,
        "system_b": b.system.name,
        "answer_a": first["response"],
        "answer_b": second["response"],
        "has_gold": first.get("gold_score") is not None and second.get("gold_score") is not None,
    }
