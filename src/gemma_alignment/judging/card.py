"""What can be said of the judge itself, from its judgements alone."""

from collections import Counter
from collections.abc import Mapping, Sequence

from gemma_alignment.judging.pairing import UNPARSED, resolve, verdicts_by_pair

Row = Mapping[str, object]


def judge_card(judgements: Sequence[Row]) -> dict[str, object]:
    """The quality card of a judge.

    * ``consistency``: share of the pairs judged in both orders whose orders name the same
      system, or are both a tie.
    * ``first_slot_share``: of the verdicts that name a slot, the share that names the first,
      with the exact two-sided binomial p against one half. The two orders of a pair are not
      independent, so this p only describes.
    * ``same_slot_twice``: pairs in which both orders name the first slot, or both the second,
      with the exact two-sided binomial p of that split: the test of a position bias.
    * ``unparsed``, ``missing_pairs``: replies that are no verdict, pairs left without a result.
    * ``calls``, ``cost`` (US dollars), ``tokens_in``, ``tokens_out``: what was sent and paid.

    Pairs of identical answers are ties without a call: they are counted in
    ``identical_answers`` and in nothing else. A number that is not defined is None and
    ``reasons`` says why.
    """
    asked = [row for row in judgements if not _uncalled_tie(row)]
    pairs = verdicts_by_pair(asked).values()
    both = [(ab, ba) for ab, ba in pairs if ab is not None and ba is not None]
    slots = Counter(row["verdict"] for row in asked)
    first, second = slots["first"], slots["second"]
    twice = Counter(ab for ab, ba in both if ab == ba and ab != "tie")
    reasons: dict[str, str] = {}
    if not judgements:
        reasons["judgements"] = "nothing was judged"
    if not both:
        reasons["consistency"] = "no pair has a verdict in both orders"
    if not first + second:
        reasons["first_slot_share"] = "no verdict names a slot"
    if not twice:
        reasons["same_slot_twice.p"] = "no pair names the same slot in both orders"
    return {
        "judgements": len(judgements),
        "identical_answers": len(judgements) - len(asked),
        "pairs": len(pairs),
        "models": sorted({str(row["model"]) for row in asked}),
        "prompt_versions": sorted({str(row["prompt_version"]) for row in asked}),
        "fingerprints": dict(sorted(Counter(str(row.get("fingerprint")) for row in asked).items())),
        "consistency": _share(sum(_consistent(ab, ba) for ab, ba in both), len(both)),
        "first_slot_share": _share(first, first + second),
        "first_slot_p": binomial_p(first, first + second),
        "same_slot_twice": {
            "first": twice["first"],
            "second": twice["second"],
            "p": binomial_p(twice["first"], twice["first"] + twice["second"]),
        },
        "unparsed": slots[UNPARSED],
        "missing_pairs": len(pairs) - len(both),
        "calls": sum(_number(row, "calls") for row in judgements),
        "cost": sum(_number(row, "cost") for row in judgements),
        "tokens_in": sum(_number(row, "tokens_in") for row in judgements),
        "tokens_out": sum(_number(row, "tokens_out") for row in judgements),
        "reasons": reasons,
    }


def binomial_p(successes: int, n: int) -> float | None:
    """Exact two-sided p of ``successes`` in ``n`` fair throws; None for n = 0.

    ``p = min(1, 2 * P(X <= min(s, n - s)))``, X ~ Bin(n, 1/2). Whole numbers until the last
    division, so it holds for any n.
    """
    if n == 0:
        return None
    term, tail = 1, 0
    for k in range(min(successes, n - successes) + 1):
        tail += term
        term = term * (n - k) // (k + 1)
    return min(1.0, 2 * tail / 2**n)


def _uncalled_tie(row: Row) -> bool:
    return row["verdict"] == "tie" and not row["reply"]


def _consistent(ab: str | None, ba: str | None) -> bool:
    return (ab == ba == "tie") or (ab != ba and "tie" not in (ab, ba))


def _share(count: int, n: int) -> float | None:
    return count / n if n else None


def _number(row: Row, key: str) -> float:
    value = row.get(key, 0)
    return value if isinstance(value, int | float) else 0


def agreement_labels(judgements: Sequence[Row]) -> tuple[list[str], list[str]]:
    """For each pair judged in both orders, the system ("a", "b" or "tie") that AB names and that BA names."""
    named = {
        "ab": {"first": "a", "second": "b", "tie": "tie"},
        "ba": {"first": "b", "second": "a", "tie": "tie"},
    }
    asked = [row for row in judgements if not _uncalled_tie(row)]
    both = [(ab, ba) for ab, ba in verdicts_by_pair(asked).values() if ab is not None and ba is not None]
    return [named["ab"][ab] for ab, _ in both], [named["ba"][ba] for _, ba in both]


def repeated_verdicts(first: Sequence[Row], again: Sequence[Row]) -> tuple[list[str], list[str]]:
    """The verdicts on the same order of the same pair, asked twice; those without a verdict are left out."""
    before = {_asked(row): str(row["verdict"]) for row in first}
    both = [(before[_asked(row)], str(row["verdict"])) for row in again if _asked(row) in before]
    kept = [pair for pair in both if UNPARSED not in pair]
    return [one for one, _ in kept], [other for _, other in kept]


def _asked(row: Row) -> tuple[object, ...]:
    return row["system_a"], row["system_b"], row["prompt_id"], row["order"]


def length_preference(
    judgements: Sequence[Row], lengths: Mapping[tuple[str, str, str], tuple[int, int]]
) -> dict[str, object]:
    """Of the pairs with a winner and two lengths, how many the longer answer won.

    Args:
        judgements: rows of both orders.
        lengths: (system_a, system_b, prompt_id) -> characters of the two answers.
    """
    longer = decided = 0
    for key, verdicts in verdicts_by_pair(judgements).items():
        result = resolve(*verdicts)
        first, second = lengths[key]
        if result in ("win", "loss") and first != second:
            decided += 1
            longer += (result == "win") == (first > second)
    return {
        "won": longer,
        "decided": decided,
        "share": _share(longer, decided),
        "p": binomial_p(longer, decided),
    }
