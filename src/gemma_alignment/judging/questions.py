"""What a judge was asked, each question once: rows of equal texts are one request with one reply."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import starmap
from typing import TYPE_CHECKING

from gemma_alignment.judging.pairing import Row, verdicts_by_pair

if TYPE_CHECKING:
    from gemma_alignment.schemas import Verdict


@dataclass(frozen=True)
class DistinctPair:
    """Two texts that were judged, with the first two systems that gave them."""

    systems: tuple[str, str]
    prompt: str
    verdicts: "tuple[Verdict | None, Verdict | None]"
    """Of orders AB and BA."""


def question(row: Row) -> object:
    """What makes a row's question its own: the digest of its texts, or, where none is stored, its names."""
    return row.get("content_key") or (row["system_a"], row["system_b"], row["prompt_id"], row["order"])


def distinct(rows: Iterable[Row]) -> list[Row]:
    """The first row of each question."""
    found: dict[object, Row] = {}
    for row in rows:
        found.setdefault(question(row), row)
    return list(found.values())


def distinct_pairs(rows: Sequence[Row]) -> list[DistinctPair]:
    """The first of the pairs on the same two texts, whichever of them is called A."""
    asked: dict[tuple[str, str, str], set[object]] = {}
    for row in rows:
        name = str(row["system_a"]), str(row["system_b"]), str(row["prompt_id"])
        asked.setdefault(name, set()).add(question(row))
    found: dict[frozenset[object], DistinctPair] = {}
    for (a, b, prompt), verdicts in verdicts_by_pair(rows).items():
        found.setdefault(frozenset(asked[a, b, prompt]), DistinctPair((a, b), prompt, verdicts))
    return list(found.values())


def total(rows: Iterable[Row], key: str) -> float:
    """The sum of a number over rows; a row without it adds nothing."""
    return sum(value for row in rows if isinstance(value := row.get(key, 0), int | float))


def nets(signs: Iterable[tuple[object, int]]) -> list[int]:
    """The sum of the signs of each prompt, from (prompt, sign)."""
    sums: dict[object, int] = {}
    for prompt, sign in signs:
        sums[prompt] = sums.get(prompt, 0) + sign
    return list(sums.values())


def sign_flip_p(sums: Sequence[int]) -> float | None:
    """Exact two-sided p of the total of prompts' sums, when each sum is as likely turned round; None without a prompt.

    ``p = P(|sum_i e_i s_i| >= |sum_i s_i|)``, e_i = ±1 with probability 1/2 each, all 2^n patterns counted in whole
    numbers. Verdicts on one prompt may depend on one another in any way. With one verdict a prompt it is
    the exact binomial test against 1/2.
    """
    if not sums:
        return None
    sizes = [abs(one) for one in sums if one]
    counts = [1]
    """Of the patterns, by (total + sum of the sizes so far) / 2: the sizes of the prompts whose sign is +."""
    for size in sizes:
        turned = [0] * size
        counts = list(starmap(int.__add__, zip(counts + turned, turned + counts, strict=True)))
    reach, seen = sum(sizes), abs(sum(sums))
    extreme = sum(count for plus, count in enumerate(counts) if abs(2 * plus - reach) >= seen)
    return extreme / 2 ** len(sizes)
