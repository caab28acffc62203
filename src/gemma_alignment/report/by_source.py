"""The final answers by the source of their prompts: does what was learned hold on a source never trained on?"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_alignment.report.formatting import name_of, number
from gemma_alignment.report.html import Column, Html, h, join, table
from gemma_alignment.report.runs import SFT, Run, RunKey, finite

Block = Mapping[str, Any]
MEASURES = {"gold_score": "True quality", "reward_model_score": "Reward-model score"}
"""Field of an answer -> its name, the first that every answer has is shown."""


def by_source(
    runs: Mapping[RunKey, Run], families: Sequence[str], prompts: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One block a source of held-out prompts: how many, and each system's mean over them, by seed.

    Empty where no prompt names its source. A run without an answer to one of the prompts has no mean.

    Args:
        runs: with their final answers.
        families: the two methods.
        prompts: rows of ``prompts_eval``: ``prompt_id`` and, where the data names it, ``source``.
    """
    found: dict[str, list[str]] = {}
    for row in prompts:
        if row.get("source") is not None:
            found.setdefault(str(row["source"]), []).append(str(row["prompt_id"]))
    answers = {
        key: {str(row["prompt_id"]): row for row in run.responses}
        for key, run in runs.items()
        if key.family in (SFT, *families) and run.responses
    }
    measure = next((one for one in MEASURES if _has(answers, one)), None)
    if measure is None:
        return []
    return [
        {"source": source, "prompts": len(ids), "measure": measure, "means": _means(answers, ids, measure)}
        for source, ids in sorted(found.items())
    ]


def _has(answers: Mapping[RunKey, Mapping[str, Block]], measure: str) -> bool:
    rows = [row for one in answers.values() for row in one.values()]
    return bool(rows) and all(finite(row.get(measure)) is not None for row in rows)


def _means(
    answers: Mapping[RunKey, Mapping[str, Block]], ids: Sequence[str], measure: str
) -> dict[str, dict[str, float]]:
    """Family -> seed -> mean; the SFT model's seed is ``""``."""
    means: dict[str, dict[str, float]] = {}
    for key in sorted(answers, key=lambda one: (one.family, one.seed or 0)):
        given = answers[key]
        if all(one in given for one in ids):
            mean = math.fsum(float(given[one][measure]) for one in ids) / len(ids)
            means.setdefault(key.family, {})["" if key.seed is None else str(key.seed)] = mean
    return means


def table_of(comparison: Block) -> Html | None:
    """Each source with the mean of each system, and for the methods what they gained on the SFT model."""
    blocks = comparison["by_source"]
    if not blocks:
        return None
    families = [comparison["protocol"][name] for name in ("method_a", "method_b")]
    columns = [
        Column("Held-out prompts", title="by the source that the data names"),
        Column("n", True, "prompts"),
        *(Column(name_of(family), True) for family in (SFT, *families)),
        *(Column(f"{name_of(family)} − SFT", True, "of the means") for family in families),
    ]
    rows = []
    for one in blocks:
        means = one["means"]
        gains = [_gain(means.get(family, {}), means.get(SFT, {})) for family in families]
        rows.append([one["source"], str(one["prompts"]), *(_mean(means.get(f, {})) for f in (SFT, *families)), *gains])
    note = f"{MEASURES[blocks[0]['measure']]} of the final answers: the mean over seeds, each seed below it."
    return join([h("p", note, class_="note"), table(columns, rows)])


def _mean(values: Mapping[str, float]) -> Html:
    each = " · ".join(number(value, 2) for value in values.values()) if len(values) > 1 else None
    return join([number(_average(values), 2), h("small", each) if each else None])


def _gain(values: Mapping[str, float], start: Mapping[str, float]) -> str:
    mean, before = _average(values), _average(start)
    return number(None if mean is None or before is None else mean - before, 2)


def _average(values: Mapping[str, float]) -> float | None:
    return math.fsum(values.values()) / len(values) if values else None
