"""Answers of every quality, as a writer with a given skill would give them."""

import random

from gemma_alignment.world.grammar import CLOSINGS, FILLERS, KINDS, LEADS, NUMBERS, OPENERS, STRANGERS, Task


def listing(items: list[str]) -> str:
    """``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _items(task: Task, skill: float, chance: random.Random) -> list[str]:
    count = task.number
    if chance.random() > 0.35 + 0.6 * skill:
        count = max(1, count + chance.choice((-2, -1, 1, 2)))
    items = chance.sample(KINDS[task.kind], min(count, len(KINDS[task.kind])))
    others = [kind for kind in KINDS if kind != task.kind]
    for i in range(len(items)):
        draw = chance.random()
        if draw > 0.80 + 0.18 * skill:
            items[i] = chance.choice(STRANGERS if chance.random() < 0.9 else KINDS[chance.choice(others)])
        elif i > 0 and draw > 0.77 + 0.21 * skill:
            items[i] = items[i - 1]
    return items


def answer(task: Task, skill: float, chance: random.Random) -> str:
    """An answer to ``task``; ``skill`` runs from 0 (careless) to 1 (nearly always perfect)."""
    lead = chance.choice(LEADS).format(
        n=NUMBERS[task.number], N=NUMBERS[task.number].capitalize(), kind=task.kind
    )
    parts = [f"{lead} {listing(_items(task, skill, chance))}."]
    if chance.random() < 0.5 * (1 - skill):
        parts.append(chance.choice(FILLERS))
    if chance.random() < 0.30 + 0.60 * skill:
        parts.insert(0, chance.choice(OPENERS))
    if chance.random() < 0.25 + 0.60 * skill:
        parts.append(chance.choice(CLOSINGS))
    return " ".join(parts)


def corrupted(text: str, chance: random.Random) -> str:
    """A broken version: another opener, cut off, a sentence repeated, or sentences out of order.

    A reward model that never saw these likes some of them, and a policy finds out which.
    """
    sentences = text.replace("!", "!|").replace(".", ".|").split("|")
    sentences = [part.strip() for part in sentences if part.strip()]
    way = chance.randrange(5)
    if way == 0:
        words = text.split()
        return " ".join(words[: chance.randrange(1, max(2, len(words) - 1))])
    if way == 1:
        words = " ".join(OPENERS).split()
        return " ".join(chance.choice(words) for _ in range(chance.randrange(1, 4))) + " " + text
    if way == 2:
        i = chance.randrange(len(sentences))
        return " ".join(sentences[: i + 1] + sentences[i:])
    if way == 3 and len(sentences) > 1:
        return " ".join(sentences[1:] + sentences[:1])
    words = text.split()
    i = chance.randrange(len(words))
    return " ".join([*words[:i], *[words[i]] * chance.randrange(2, 4), *words[i + 1 :]])
