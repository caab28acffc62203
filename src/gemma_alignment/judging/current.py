"""Which verdicts are on the answers that are there now: joined by what was judged, not by its name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gemma_alignment.judging.client import Request
from gemma_alignment.judging.pairing import Row

Answers = Mapping[str, Mapping[str, tuple[str, str]]]
"""System -> prompt id -> the prompt and the system's answer."""


@dataclass(frozen=True)
class Outdated:
    """Verdicts that no longer count, one for each order of a pair of answers."""

    verdicts: int = 0
    """On answers that are not those on disk."""
    beside: int = 0
    """On answers that are, of systems that have others of the first kind."""
    of: int = 0
    """Verdicts in all."""
    systems: tuple[tuple[str, str], ...] = ()
    """The pairs of systems that they were on."""


def current_verdicts(judgements: Sequence[Row], answers: Answers) -> tuple[list[Row], Outdated]:
    """The rows whose prompt and answers are those of ``answers``, and what was left out.

    A row is known by its ``content_key``, the digest of the prompt and both answers in their order. Two systems
    with one outdated verdict lose all of theirs: the prompts on which a policy answers as its predecessor
    did are no random part of them, and a rate over these alone would speak of neither.
    """
    matches = [_matches(row, answers) for row in judgements]
    outdated = [_systems(row) for row, is_current in zip(judgements, matches, strict=True) if not is_current]
    touched = dict.fromkeys(outdated)
    kept = [row for row in judgements if _systems(row) not in touched]
    beside = len(judgements) - len(kept) - len(outdated)
    return kept, Outdated(len(outdated), beside, len(judgements), tuple(touched))


def _systems(row: Row) -> tuple[str, str]:
    return str(row["system_a"]), str(row["system_b"])


def _matches(row: Row, answers: Answers) -> bool:
    prompt_id = str(row["prompt_id"])
    a, b = (answers.get(system, {}).get(prompt_id) for system in _systems(row))
    if a is None or b is None:
        return False
    first, second = (a, b) if row["order"] == "ab" else (b, a)
    return row.get("content_key") == Request(first[0], first[1], second[1]).content_key
