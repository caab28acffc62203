"""What can be said of the judge itself, from its judgements alone."""

from collections import Counter
from collections.abc import Mapping, Sequence

from gemma_alignment.judging.pairing import UNPARSED, Row, resolve, verdicts_by_pair
from gemma_alignment.judging.questions import distinct, distinct_pairs, nets, question, sign_flip_p, total


def judge_card(judgements: Sequence[Row]) -> dict[str, object]:
    """The quality card of a judge.

    A row is one order of one pair of answers. Rows of the same texts are one question with one reply, however many runs
    gave these answers, so everything that is said of the judge counts questions and pairs of distinct texts, and
    every p resamples prompts:

    * ``judgements``, ``pairs``, ``missing_pairs``: rows, pairs of systems' answers that were put to the judge, and
      those of them left without a result: what a study was judged on.
    * ``identical_answers``: pairs of equal answers, ties without a question; they count in nothing else.
    * ``questions``, ``distinct_pairs``: distinct requests, and distinct pairs of texts that they were on.
    * ``consistency``: share of the distinct pairs with both orders whose orders name the same text, or are both a tie.
    * ``first_slot_share``: of the replies that name a slot, the share that names the first, with the exact p of
      :func:`sign_flip_p` over prompts.
    * ``same_slot_twice``: distinct pairs in which both orders name the first slot, or both the second, with the same
      p of that split: the test of a position bias.
    * ``unparsed``: questions whose reply is no verdict.
    * ``calls``, ``cost`` (US dollars), ``tokens_in``, ``tokens_out``: what was sent and paid, each question once.

    A number that is not defined is None and ``reasons`` says why.
    """
    asked = [row for row in judgements if not _uncalled_tie(row)]
    questions, pairs, apart = distinct(asked), verdicts_by_pair(asked).values(), distinct_pairs(asked)
    both = [(one.prompt, *one.verdicts) for one in apart if None not in one.verdicts]
    slots = Counter(row["verdict"] for row in questions)
    naming = [row for row in questions if row["verdict"] in _SLOT]
    twice = [(prompt, _SLOT[str(ab)]) for prompt, ab, ba in both if ab == ba != "tie"]
    return {
        "judgements": len(judgements),
        "identical_answers": len(verdicts_by_pair(judgements)) - len(pairs),
        "pairs": len(pairs),
        "missing_pairs": sum(None in one for one in pairs),
        "questions": len(questions),
        "distinct_pairs": len(apart),
        "models": sorted({str(row["model"]) for row in asked}),
        "prompt_versions": sorted({str(row["prompt_version"]) for row in asked}),
        "fingerprints": dict(sorted(Counter(str(row.get("fingerprint")) for row in questions).items())),
        "consistency": _share(sum(_consistent(ab, ba) for _, ab, ba in both), len(both)),
        "first_slot_share": _share(slots["first"], len(naming)),
        "first_slot_p": sign_flip_p(nets((row["prompt_id"], _SLOT[str(row["verdict"])]) for row in naming)),
        "same_slot_twice": {
            "first": sum(sign > 0 for _, sign in twice),
            "second": sum(sign < 0 for _, sign in twice),
            "p": sign_flip_p(nets(twice)),
        },
        "unparsed": slots[UNPARSED],
        **{key: total(questions, key) for key in ("calls", "cost", "tokens_in", "tokens_out")},
        "reasons": _reasons(bool(judgements), bool(both), bool(naming), bool(twice)),
    }


_SLOT = {"first": 1, "second": -1}


def _reasons(judged: bool, both: bool, named: bool, twice: bool) -> dict[str, str]:
    """Why a number of the card is None, by its name."""
    said = {
        "judgements": (judged, "nothing was judged"),
        "consistency": (both, "no pair has a verdict in both orders"),
        "first_slot_share": (named, "no verdict names a slot"),
        "same_slot_twice.p": (twice, "no pair names the same slot in both orders"),
    }
    return {name: reason for name, (is_there, reason) in said.items() if not is_there}


def _uncalled_tie(row: Row) -> bool:
    return row["verdict"] == "tie" and not row["reply"]


def _consistent(ab: str | None, ba: str | None) -> bool:
    return (ab == ba == "tie") or (ab != ba and "tie" not in (ab, ba))


def _share(count: int, n: int) -> float | None:
    return count / n if n else None


def agreement_labels(judgements: Sequence[Row]) -> tuple[list[str], list[str]]:
    """For each distinct pair judged in both orders, the system ("a", "b" or "tie") that AB names and that BA names."""
    named = {
        "ab": {"first": "a", "second": "b", "tie": "tie"},
        "ba": {"first": "b", "second": "a", "tie": "tie"},
    }
    asked = [row for row in judgements if not _uncalled_tie(row)]
    both = [one.verdicts for one in distinct_pairs(asked) if None not in one.verdicts]
    return [named["ab"][str(ab)] for ab, _ in both], [named["ba"][str(ba)] for _, ba in both]


def repeated_verdicts(first: Sequence[Row], again: Sequence[Row]) -> tuple[list[str], list[str]]:
    """The verdicts on the same question, asked twice; those without a verdict are left out."""
    before = {question(row): str(row["verdict"]) for row in first}
    both = [(before[question(row)], str(row["verdict"])) for row in distinct(again) if question(row) in before]
    kept = [pair for pair in both if UNPARSED not in pair]
    return [one for one, _ in kept], [other for _, other in kept]


def length_preference(
    judgements: Sequence[Row], lengths: Mapping[tuple[str, str, str], tuple[int, int]]
) -> dict[str, object]:
    """Of the distinct pairs with a winner and two lengths, how many the longer answer won; p over prompts.

    Args:
        judgements: rows of both orders.
        lengths: (system_a, system_b, prompt_id) -> characters of the two answers.
    """
    signs: list[tuple[str, int]] = []
    for one in distinct_pairs(judgements):
        result = resolve(*one.verdicts)
        first, second = lengths[one.systems[0], one.systems[1], one.prompt]
        if result in ("win", "loss") and first != second:
            signs.append((one.prompt, 1 if (result == "win") == (first > second) else -1))
    won = sum(sign > 0 for _, sign in signs)
    return {"won": won, "decided": len(signs), "share": _share(won, len(signs)), "p": sign_flip_p(nets(signs))}
