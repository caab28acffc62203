"""Whether a method went past the point at which its reward model still meant quality."""

from collections.abc import Mapping
from math import sqrt
from typing import Any

from gemma_alignment.report.runs import Run, finite

Block = dict[str, Any]
PROXY, GOLD, KL = "eval/score_mean", "eval/gold_mean", "eval/kl_to_reference"


def overoptimization(by_family: Mapping[str, Mapping[int, Run]]) -> Block | None:
    """By family and seed: proxy score and gold at the first, at the last and at gold's best evaluation.

    The best evaluation is the largest of several noisy values, so it describes and is never compared.
    None where no run knows gold.
    """
    found = {
        name: {str(seed): one for seed, run in runs.items() if (one := _of_run(run))}
        for name, runs in by_family.items()
    }
    return found if any(found.values()) else None


def _of_run(run: Run) -> Block | None:
    points = [point for row in run.history if (point := _point(row))]
    if len(points) < 2:
        return None
    best = max(points, key=lambda point: point["gold"])
    return {"first": points[0], "best": best, "last": points[-1], "past_best": points[-1]["gold"] - best["gold"]}


def _point(row: Mapping[str, Any]) -> Block | None:
    values = [finite(row.get(key)) for key in (PROXY, GOLD, KL)]
    if any(value is None for value in values):
        return None
    proxy, gold, kl = (float(value or 0.0) for value in values)
    return {"iteration": int(row["iteration"]), "score": proxy, "gold": gold, "sqrt_kl": sqrt(max(0.0, kl))}
