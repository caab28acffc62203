"""Pairs that people have labelled, put to the judge: does it say what they say?"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from gemma_alignment.judging.client import digest
from gemma_alignment.judging.pairing import Result, resolve, verdicts_by_pair
from gemma_alignment.judging.session import Comparison

Label = Literal["a", "b", "tie"]
NAMED: dict[Result, Label] = {"win": "a", "loss": "b", "tie": "tie"}
"""What a result for system A says in the words of a label."""


def labelled_comparisons(rows: Iterable[Mapping[str, Any]], count: int) -> list[tuple[Comparison, Label]]:
    """At most ``count`` pairs with the label that people gave them.

    The better answer stands on either side, by a hash of the texts: were it always the first, every
    label would be the same and kappa undefined. Equal scores are a tie.

    Args:
        rows: of ``prompt``, ``chosen`` and ``rejected`` (messages), ``score_chosen``, ``score_rejected``.
        count: drawn by that hash, so that a longer file changes few of them.
    """
    found: dict[str, tuple[Comparison, Label]] = {}
    for row in rows:
        prompt = str(row["prompt"])
        better, worse = (str(row[side][-1]["content"]) for side in ("chosen", "rejected"))
        name = digest(prompt, *sorted((better, worse)))
        first = bool(int(name[-1], 16) % 2)
        pair = (better, worse) if first else (worse, better)
        tie = row["score_chosen"] == row["score_rejected"]
        label: Label = "tie" if tie else "a" if first else "b"
        found[name] = Comparison(name, prompt, "labelled/a", "labelled/b", *pair), label
    return [found[name] for name in sorted(found)[:count]]


def against_labels(rows: Sequence[Mapping[str, Any]]) -> tuple[list[Label], list[Label]]:
    """The labels and the judge's results, pair by pair, where both orders have a verdict.

    Args:
        rows: judgements of :func:`labelled_comparisons`, each with its ``label``.
    """
    labels = {str(row["prompt_id"]): row["label"] for row in rows}
    results = {prompt: resolve(*pair) for (_, _, prompt), pair in verdicts_by_pair(rows).items()}
    decided = [(labels[prompt], NAMED[result]) for prompt, result in results.items() if result is not None]
    return [label for label, _ in decided], [named for _, named in decided]


def label_counts(labels: Sequence[Label], results: Sequence[Label]) -> dict[str, int]:
    """How the results stand to the labels: of the pairs that people decided, right, tied and wrong."""
    decided = [(label, result) for label, result in zip(labels, results, strict=True) if label != "tie"]
    kinds = Counter("right" if a == b else "tied" if b == "tie" else "wrong" for a, b in decided)
    return {**{kind: kinds[kind] for kind in ("right", "tied", "wrong")}, "people_tied": len(labels) - len(decided)}
