"""What each phase of the study took: time from its start to its end, and memory at its peak."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from gemma_alignment.report.formatting import name_of, number
from gemma_alignment.report.html import Column, Html, h, join, table
from gemma_alignment.report.per_seed import below
from gemma_alignment.report.runs import Run, RunKey, finite

Block = Mapping[str, Any]

LABELS = {
    "data_processing": "Data and base model",
    "sft": "SFT",
    "reward_model": "Reward model",
    "evaluation": "Evaluation",
}
"""Phases that stand once, in their order; the methods come before the last one."""


def phases(runs: Mapping[RunKey, Run], families: Sequence[str]) -> list[dict[str, Any]]:
    """One block a phase that left a record: seconds and peak memory of each of its runs, by seed.

    Seconds are those between ``created`` and ``ended`` of ``run.json``: of a run that was resumed, the last attempt.
    """
    once = list(LABELS)
    found = []
    for name in (*once[:-1], *families, once[-1]):
        cards = {str(k.seed or ""): run.card for k, run in runs.items() if k.family == name and run.card}
        seconds = {seed: s for seed, card in cards.items() if (s := seconds_of(card)) is not None}
        peaks = {seed: m for seed, card in cards.items() if (m := finite(card.get("peak_mb"))) is not None}
        if seconds:
            found.append({"phase": name, "seconds": seconds, "peak_mb": peaks})
    return found


def seconds_of(card: Block) -> float | None:
    """How long a finished run took; None where its record has no start or no end."""
    if card.get("status") != "finished" or not card.get("created") or not card.get("ended"):
        return None
    start, end = (datetime.fromisoformat(str(card[key])) for key in ("created", "ended"))
    return (end - start).total_seconds()


def table_of(comparison: Block) -> Html | None:
    """Every phase with its time and memory."""
    if not comparison["phases"]:
        return None
    columns = [
        Column("Phase"),
        Column("minutes", True, "from the start of the stage to its end, models loaded and answers written included"),
        Column("peak memory, MB", True, "allocated on the GPU; on a CPU resident size of the process"),
    ]
    rows = []
    for one in comparison["phases"]:
        minutes = {seed: value / 60.0 for seed, value in one["seconds"].items()}
        name = LABELS.get(one["phase"]) or name_of(one["phase"])
        rows.append([name, _mean(minutes, 1), _mean(one["peak_mb"], 0)])
    note = h(
        "p",
        "Of a method the mean over seeds, the seeds below it; runs that share a machine slow each other down.",
        class_="note",
    )
    return join([table(columns, rows), note])


def _mean(values: Mapping[str, float], decimals: int) -> Html:
    mean = sum(values.values()) / len(values) if values else None
    return join([h("b", number(mean, decimals)), below(values, decimals) if len(values) > 1 else None])
