"""The final answers by the source of their prompts: does what was learned hold on a source never trained on?"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_alignment.report.formatting import NONE, name_of, number
from gemma_alignment.report.html import Column, Content, Html, h, join, table
from gemma_alignment.report.per_seed import below, order
from gemma_alignment.report.runs import DATA, SFT, Run, RunKey, finite

Block = Mapping[str, Any]
MEASURES = {"gold_score": "True quality", "reward_model_score": "Reward-model score"}
"""Field of an answer -> its name, the first that every answer has is shown."""


def by_source(
    runs: Mapping[RunKey, Run], used: Sequence[Run], families: Sequence[str], prompts: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """One block a source of held-out prompts: how many, and each system's mean over them, by seed.

    Empty where no prompt names its source. A run without an answer to one of the prompts has no mean.

    Args:
        runs: everything that left a record: the SFT model's answers and how the data was split are looked up here.
        used: the compared runs, with their final answers; no other run of a method is in its mean.
        families: the two methods.
        prompts: rows of ``prompts_eval``: ``prompt_id`` and, where the data names it, ``source``.
    """
    found: dict[str, list[str]] = {}
    for row in prompts:
        if row.get("source") is not None:
            found.setdefault(str(row["source"]), []).append(str(row["prompt_id"]))
    answers = {
        run.key: {str(row["prompt_id"]): row for row in run.responses}
        for run in (*used, *(run for key, run in runs.items() if key.family == SFT))
        if run.responses
    }
    measure = next((one for one in MEASURES if _has(answers, one)), None)
    if measure is None:
        return []
    keys = sorted(run.key for run in used)
    seeds = {name: [key.seed for key in keys if key.family == name] for name in families}
    unseen = _unseen_sources(runs.get(RunKey(DATA, None)))
    return [
        {
            "source": source,
            "prompts": len(ids),
            "held_out_whole": None if unseen is None else source in unseen,
            "reason": "preferences.unseen_sources is not recorded" if unseen is None else None,
            "measure": measure,
            "seeds": seeds,
            "means": _means(answers, ids, measure),
        }
        for source, ids in sorted(found.items())
    ]


def _unseen_sources(split: Run | None) -> Sequence[str] | None:
    """What the record of the split names as held out whole; None where it says nothing of it."""
    parameters = (split.card.get("parameters") or {}) if split else {}
    found: Sequence[str] | None = (parameters.get("preferences") or {}).get("unseen_sources")
    return found


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
        Column("held out whole", title="yes: neither SFT, reward model nor methods were trained on a row of it"),
        Column("n", True, "prompts"),
        *(Column(name_of(family), True) for family in (SFT, *families)),
        *(Column(f"{name_of(family)} − SFT", True, "of the means") for family in families),
    ]
    seeds = ", ".join(f"{name_of(name)} {order(blocks[0]['seeds'][name])}" for name in families)
    note = (
        f"{MEASURES[blocks[0]['measure']]} of the final answers of the compared runs: the mean over seeds, the seeds "
        f"below it in this order: {seeds}. “New prompts” anywhere on this page means prompts of this mix."
    )
    return join([h("p", note, class_="note"), table(columns, [_row(one, families) for one in blocks])])


def _row(block: Block, families: Sequence[str]) -> list[Content]:
    means, seeds = block["means"], block["seeds"]
    start = means.get(SFT, {}).get("")
    by_family = {name: means.get(name, {}) for name in families}
    average = {name: _average(by_family[name], len(seeds[name])) for name in families}
    return [
        block["source"],
        h("span", {True: "yes", False: "no", None: "not known"}[block["held_out_whole"]], title=block["reason"]),
        str(block["prompts"]),
        number(start, 2),
        *(_mean(by_family[name], average[name], len(seeds[name])) for name in families),
        *(number(None if (mean := average[name]) is None or start is None else mean - start, 2) for name in families),
    ]


def _mean(values: Mapping[str, float], average: float | None, runs: int) -> Html:
    """The mean where every seed has one, with the seeds in order; else the seeds that have, each by its name."""
    if average is None:
        named = [h("small", f"seed {seed}: {number(value, 2)}") for seed, value in values.items()]
        return join([h("span", NONE), h("small", f"not by all seeds: {len(values)} of {runs}"), *named])
    return join([number(average, 2), below(values, 2) if runs > 1 else None])


def _average(values: Mapping[str, float], runs: int) -> float | None:
    return math.fsum(values.values()) / runs if values and len(values) == runs else None
