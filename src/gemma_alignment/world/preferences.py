"""Preference rows of the embedded world: two answers, ordered by gold plus noise."""

import hashlib
import random
from collections.abc import Iterator
from typing import Any

from gemma_alignment.world.gold import gold_score
from gemma_alignment.world.grammar import KINDS, NUMBERS, PHRASINGS, USES, Task, instruction, read_instruction
from gemma_alignment.world.remarks import remark
from gemma_alignment.world.text import answer, corrupted


def prompt_id(prompt: str) -> str:
    """sha256 of the text, as UltraFeedback names its prompts."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def draw_prompt(chance: random.Random) -> str:
    """An instruction, uniformly from the world."""
    task = Task(chance.choice(list(NUMBERS)), chance.choice(list(KINDS)))
    return instruction(task, chance.randrange(len(PHRASINGS)), chance.randrange(len(USES)))


def row(prompt: str, chosen: str, rejected: str, score_chosen: float, score_rejected: float) -> dict[str, Any]:
    """A row in the schema of ``HuggingFaceH4/ultrafeedback_binarized``."""
    user = {"content": prompt, "role": "user"}
    better = [user, {"content": chosen, "role": "assistant"}]
    return {
        "prompt": prompt, "prompt_id": prompt_id(prompt), "chosen": better,
        "rejected": [user, {"content": rejected, "role": "assistant"}], "messages": better,
        "score_chosen": score_chosen, "score_rejected": score_rejected,
    }  # fmt: skip


def generate_rows(
    rows: int, noise: float, max_skill: float, corrupted_share: float, seed: int
) -> Iterator[dict[str, Any]]:
    """``rows`` preference pairs.

    Args:
        rows: how many.
        noise: sd of the Gaussian error of each written score, in points of gold.
        max_skill: writers' skills are uniform from 0 to this.
        corrupted_share: part of the pairs in which one answer is broken.
        seed: of the only source of chance.
    """
    chance = random.Random(seed)
    made = 0
    while made < rows:
        prompt = draw_prompt(chance)
        task = read_instruction(prompt)
        if task is None:
            raise ValueError(f"the grammar cannot read its own instruction {prompt!r}")
        first, second = (answer(task, chance.uniform(0, max_skill), chance) for _ in range(2))
        if chance.random() < corrupted_share:
            second = corrupted(second, chance)
        if first == second:
            continue
        noisy = ((gold_score(prompt, text) + chance.gauss(0, noise), text) for text in (first, second))
        scored = sorted(((min(10.0, max(0.0, score)), text) for score, text in noisy), reverse=True)
        (high, chosen), (low, rejected) = scored
        made += 1
        yield row(prompt, chosen, rejected, round(high, 1), round(low, 1))


def dialogue(
    prompt: str, noise: float, max_skill: float, corrupted_share: float, chance: random.Random
) -> tuple[str, str]:
    """A mixed-quality answer to an instruction of the world and a reader's remark on it, for pre-training."""
    task = read_instruction(prompt)
    if task is None:
        raise ValueError(f"{prompt!r} is no instruction of the embedded world")
    text = answer(task, chance.uniform(0, max_skill), chance)
    if chance.random() < corrupted_share:
        text = corrupted(text, chance)
    return text, remark(prompt, text, noise, chance)
