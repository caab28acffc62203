"""What a reader says of an answer: points, then each fault by its name.

Language models know good answers from bad ones because people write about answers. The tiny base learns it
from the same source: its pre-training text is dialogues in which the reader's remark follows the answer.
"""

import random

from gemma_alignment.world.gold import broken, gold_score, items_of, sentences_of
from gemma_alignment.world.grammar import CLOSINGS, FILLERS, KINDS, OPENERS, Task, read_instruction

COUNTS = ("none", "one", "two", "three", "four", "five", "six", "seven")


def remark(prompt: str, response: str, noise: float, chance: random.Random) -> str:
    """``I give it 7 points. You said it twice: pear.``: gold plus noise of sd ``noise``, and the faults.

    Raises:
        ValueError: when ``prompt`` is no instruction of the embedded world.
    """
    task = read_instruction(prompt)
    if task is None:
        raise ValueError(f"{prompt!r} is no instruction of the embedded world")
    points = min(10, max(0, round(gold_score(prompt, response) + chance.gauss(0, noise))))
    return " ".join([f"I give it {points} points.", *(faults(task, response) or ["Thank you, that is right."])])


def faults(task: Task, response: str) -> list[str]:
    """Every fault of an answer, those of the list first."""
    sentences = sentences_of(response)
    lists = [items for items in map(items_of, sentences) if items is not None]
    found = _faults_of_list(task, lists[0]) if lists else ["Where is the list?"]
    if any(sentence in FILLERS for sentence in sentences):
        found.append("Please leave out the small talk.")
    if not sentences or sentences[0] not in OPENERS:
        found.append("A kind word first, please.")
    if not sentences or sentences[-1] not in CLOSINGS:
        found.append("It has no closing.")
    if broken(sentences, len(lists)):
        found.append("Some of it makes no sense.")
    return found


def _faults_of_list(task: Task, items: list[str]) -> list[str]:
    kind = KINDS[task.kind]
    found = []
    for i, item in enumerate(items):
        if item not in kind:
            found.append(f"Not one of the {task.kind}: {item}.")
        elif item in items[:i]:
            found.append(f"You said it twice: {item}.")
    right = len({item for item in items if item in kind})
    if right != task.number:
        found.append(f"I asked for {COUNTS[task.number]}, you gave {COUNTS[right]}.")
    return found
