"""What a judge was asked, each question once: rows of equal texts are one request with one reply."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
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
    reach, seen = sum(sizes), abs(sum(sums))
    if not seen:
        return 1.0
    return 2 * sum(_patterns(sizes, (reach - seen) // 2)) / 2 ** len(sizes)


def _patterns(sizes: Sequence[int], last: int) -> list[int]:
    """How many sign patterns give the sizes with a plus the sum 0, 1, ... ``last``.

    They are the coefficients p_k of P(x) = prod_s (1 + x^s)^(m_s), s the distinct sizes and m_s how many have it. From
    x P' = sum_s m_s s U_s with U_s = x^s P / (1 + x^s) follow k p_k = sum_s m_s s u_s(k) and u_s(k) = p_(k-s) -
    u_s(k-s): a step for each distinct size, not for each prompt, in whole numbers.
    """
    tally = Counter(sizes)
    counts, without = [1], {size: [0] for size in tally}
    for plus in range(1, last + 1):
        for size, row in without.items():
            row.append(counts[plus - size] - row[plus - size] if plus >= size else 0)
        counts.append(sum(many * size * without[size][plus] for size, many in tally.items()) // plus)
    return counts
