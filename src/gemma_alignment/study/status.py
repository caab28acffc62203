"""What of a study is done, running, failed and left: read from the ``run.json`` files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gemma_alignment.dotted import merged, nested
from gemma_alignment.hooks.work import Work, works
from gemma_alignment.study.plan import Plan
from gemma_alignment.study.progress import Progress


@dataclass(frozen=True)
class Line:
    """The state of one stage or run."""

    name: str
    state: str
    """``finished``, ``other configuration``, ``running``, ``partial``, ``failed``, ``killed``, ``vanished``,
    ``left``."""
    detail: str


def status_of(plan: Plan, project: Path, parameters: Mapping[str, Any]) -> list[Line]:
    """One line for each stage and run of ``plan``, in its order; no store is opened.

    What is finished is compared by its parameters and by the files that they name; ``--resume --dry-run`` compares
    inputs and outputs too.
    """
    from kedro.framework.project import pipelines

    lines = []
    for run in plan.runs:
        own = merged(parameters, nested(run.params))
        lines += [_line(works(pipelines[name], pipelines, own, project)[name], own) for name in run.pipelines]
    return lines


def _line(work: Work, parameters: Mapping[str, Any]) -> Line:
    stage, directory, record = work.stage, work.directory, work.previous
    if record is None:
        return Line(stage.run_name, "left", "")
    if record.status == "finished" and (others := work.deviations()):
        return Line(stage.run_name, "other configuration", "; ".join(others))
    iterations = int(parameters["policy_optimization"]["num_iterations"]) if stage.is_arm else None
    state = "vanished" if record.status == "running" and not record.is_alive(directory) else str(record.status)
    progress = Progress.read(directory, iterations)
    detail = record.error or (progress.text() if progress else f"since {record.created}")
    return Line(stage.run_name, state, detail.splitlines()[0])


def counted(lines: Sequence[Line]) -> str:
    """``3 finished, 1 running, 2 left``."""
    states = dict.fromkeys(line.state for line in lines)
    return ", ".join(f"{sum(line.state == state for line in lines)} {state}" for state in states)
