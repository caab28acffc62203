"""Preference rows of the embedded world: two answers, ordered by gold plus noise."""

import hashlib
import random
from collections.abc import Iterator
from typing import Any

from gemma_alignment.world.gold import gold_score
from gemma_alignment.world.grammar import KINDS, NUMBERS, PHRASINGS, USES, Task, instruction, read_instruction
from gemma_alignment.world.remarks import remark
from gemma_alignment.world.text import answer, corrupted

KNOWN_TASK, NEW_TASK = "known task", "new task"
"""Sources of the world's rows: whether the task is one of those that are kept for testing."""


def unseen_tasks(count: int, seed: int) -> frozenset[Task]:
    """``count`` tasks to hold out whole: of different kinds, the numbers in turn.

    So every kind is trained on, and every number, but not these of them together.

    Raises:
        ValueError: for more tasks than there are kinds.
    """
    if not 0 <= count <= len(KINDS):
        raise ValueError(f"world.unseen_tasks is {count}, but there are {len(KINDS)} kinds: give 0 to {len(KINDS)}")
    chance = random.Random(f"{seed}/unseen tasks")
    kinds, numbers = chance.sample(list(KINDS), count), chance.sample(list(NUMBERS), len(NUMBERS))
    return frozenset(Task(numbers[i % len(numbers)], kind) for i, kind in enumerate(kinds))


def prompt_id(prompt: str) -> str:
    """sha256 of the text, as UltraFeedback names its prompts."""
    return hashlib.sha256(prompt.encode()).hexdigest()


def draw_prompt(chance: random.Random) -> str:
    """An instruction, uniformly from the world."""
    task = Task(chance.choice(list(NUMBERS)), chance.choice(list(KINDS)))
    return instruction(task, chance.randrange(len(PHRASINGS)), chance.randrange(len(USES)))


def row(
    prompt: str, chosen: str, rejected: str, score_chosen: float, score_rejected: float, source: str = KNOWN_TASK
) -> dict[str, Any]:
    """A row in the schema of ``HuggingFaceH4/ultrafeedback_binarized``, and its source."""
    user = {"content": prompt, "role": "user"}
    better = [user, {"content": chosen, "role": "assistant"}]
    return {
        "prompt": prompt, "prompt_id": prompt_id(prompt), "chosen": better,
        "rejected": [user, {"content": rejected, "role": "assistant"}], "messages": better,
        "score_chosen": score_chosen, "score_rejected": score_rejected, "source": source,
    }  # fmt: skip


def generate_rows(
    rows: int, noise: float, max_skill: float, corrupted_share: float, seed: int, unseen: int = 0
) -> Iterator[dict[str, Any]]:
    """``rows`` preference pairs.

    Args:
        rows: how many.
        noise: sd of the Gaussian error of each written score, in points of gold.
        max_skill: writers' skills are uniform from 0 to this.
        corrupted_share: part of the pairs in which one answer is broken.
        seed: of the only source of chance.
        unseen: tasks whose rows are of the source ``NEW_TASK``.
    """
    chance = random.Random(seed)
    new = unseen_tasks(unseen, seed)
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
        yield row(prompt, chosen, rejected, round(high, 1), round(low, 1), NEW_TASK if task in new else KNOWN_TASK)


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
