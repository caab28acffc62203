"""The last lines of a study: what became of it, what it found, and where to look."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_alignment.stages import ARMS, Stage
from gemma_alignment.study.plan import Plan
from gemma_alignment.study.progress import clock


def summary(
    name: str, status: str, counts: Mapping[str, int], seconds: float, plan: Plan, data_root: Path, store: str
) -> list[str]:
    """Five lines where everything finished; without result and report where there is none.

    Args:
        name: of the study.
        status: as MLflow has it.
        counts: how many processes are ``done`` and ``failed``.
        seconds: how long it took.
        plan: what was to run.
        data_root: the folder of its data.
        store: the address of the MLflow store.
    """
    finished = status == "FINISHED"
    said = f"{counts['done']} processes done, {counts['failed']} failed"
    lines = [f"{name} {status.lower()}: {said}, {clock(seconds)}"]
    report = data_root / "08_reporting" / "report.html"
    if finished and (result := _result(report.with_name("comparison.json"))) is not None:
        lines.append(f"Result:    {result}")
    if finished or counts.get("closed"):
        lines.append(f"Report:    {report}")
    lines.append(f"MLflow UI: make ui   (or: mlflow ui --backend-store-uri {store})")
    if not finished:
        lines.append("What is left: the same command with --resume")
    elif (words := _chat(plan)) is not None:
        lines.append(f"Ask one:   {words}")
    return lines


def _result(path: Path) -> str | None:
    """The verdict in one sentence; None where there is no comparison with one."""
    from gemma_alignment.report.wording import headline

    try:
        comparison: Any = json.loads(path.read_text(encoding="utf-8"))
        return headline(comparison["verdict"], comparison["protocol"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _chat(plan: Plan) -> str | None:
    """The command that asks the last policy of the study, a configured one where there is any."""
    if not plan.arms:
        return None
    stages: list[Stage] = [run.stages[0] for run in plan.arms]
    stage = next((one for one in reversed(stages) if not one.variant), stages[-1])
    if stage.name not in ARMS:
        return None
    given = {key: str(value) for key, value in plan.params.items() if key == "data_root"}
    if stage.variant:
        given["variant"] = stage.variant
    options = (f" --env={plan.env}" if plan.env else "") + (
        f" --params {','.join(f'{key}={value}' for key, value in given.items())}" if given else ""
    )
    return f"python -m gemma_alignment chat --method {stage.name} --seed {stage.seed} --compare{options}"
