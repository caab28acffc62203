"""The true quality of an answer, from 0 to 10, read from its text alone.

| part | points |
|---|---|
| distinct right items, as many as asked | 6 · max(0, 1 − |found − n| / n) |
| opener from the list of courteous ones, at the start | 1.5 |
| closing from the list, at the end | 1 |
| one list sentence, and the text ends with a full stop or the like | 1.5 |
| each wrong or unknown item, each repeat | −1 |
| each filler sentence | −0.75 |
| each broken sentence: unknown, cut off, a second opener or list, out of order | −1.5 |
"""

import re

from gemma_alignment.world.grammar import CLOSINGS, FILLERS, KINDS, LEADS, NUMBERS, OPENERS, Task, read_instruction

_LEADS = {
    lead.format(n=word, N=word.capitalize(), kind=kind).lower()
    for lead in LEADS
    for word in NUMBERS.values()
    for kind in KINDS
}


def sentences_of(text: str) -> list[str]:
    """Sentences with their closing marks; a rest without one comes last."""
    return [part.strip() for part in re.findall(r"[^.!?]+[.!?]?|[.!?]", text) if part.strip()]


def items_of(sentence: str) -> list[str] | None:
    """The items of a list sentence, None when the sentence is no list."""
    lead, colon, rest = sentence.partition(":")
    if not colon or f"{lead}:".lower() not in _LEADS:
        return None
    return [part.strip() for part in re.split(r",|\band\b", rest.rstrip(".!?")) if part.strip()]


def gold_score(prompt: str, response: str) -> float:
    """The exact quality of ``response`` to ``prompt``, in [0, 10]; 0 for an instruction of no kind known here."""
    task = read_instruction(prompt)
    if task is None:
        return 0.0
    sentences = sentences_of(response)
    lists = [items for items in map(items_of, sentences) if items is not None]
    points = _list_points(task, lists[0]) if lists else 0.0
    points += 1.5 * (bool(sentences) and sentences[0] in OPENERS)
    points += 1.0 * (bool(sentences) and sentences[-1] in CLOSINGS)
    points += 1.5 * (len(lists) == 1 and sentences[-1][-1] in ".!?")
    points -= 0.75 * sum(sentence in FILLERS for sentence in sentences)
    points -= 1.5 * broken(sentences, len(lists))
    return min(10.0, max(0.0, points))


def _list_points(task: Task, items: list[str]) -> float:
    right = {item for item in items if item in KINDS[task.kind]}
    faults = sum(item not in KINDS[task.kind] for item in items)
    faults += sum(item in right for item in items) - len(right)
    return 6 * max(0.0, 1 - abs(len(right) - task.number) / task.number) - faults


def broken(sentences: list[str], lists: int) -> int:
    """Sentences that are nothing known, and known ones that stand where they should not."""
    count = max(0, lists - 1)
    for i, sentence in enumerate(sentences):
        opener, closing = sentence in OPENERS, sentence in CLOSINGS
        known = opener or closing or sentence in FILLERS or items_of(sentence) is not None
        misplaced = (opener and i > 0) or (closing and i < len(sentences) - 1)
        count += (not known) or misplaced
    return count
