"""What of a study is done, running, failed and left: read from the ``run.json`` files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gemma_alignment.fingerprints import Record
from gemma_alignment.stages import Stage
from gemma_alignment.study.plan import Plan
from gemma_alignment.study.progress import Progress


@dataclass(frozen=True)
class Line:
    """The state of one stage or run."""

    name: str
    state: str
    """``finished``, ``running``, ``partial``, ``failed``, ``killed``, ``vanished`` or ``left``."""
    detail: str


def status_of(plan: Plan, data_root: Path, iterations: int) -> list[Line]:
    """One line for each stage and run of ``plan``, in its order."""
    runs = [plan.preparation, *plan.arms, plan.closing]
    return [_line(stage, data_root, iterations) for run in runs for stage in run.stages]


def _line(stage: Stage, data_root: Path, iterations: int) -> Line:
    directory = stage.directory(data_root)
    record = Record.read(directory)
    if record is None:
        return Line(stage.run_name, "left", "")
    state = "vanished" if record.status == "running" and not record.is_alive else str(record.status)
    progress = Progress.read(directory, iterations) if stage.is_arm else None
    detail = record.error or (progress.text() if progress else f"since {record.created}")
    return Line(stage.run_name, state, detail.splitlines()[0])


def counted(lines: Sequence[Line]) -> str:
    """``3 finished, 1 running, 2 left``."""
    states = dict.fromkeys(line.state for line in lines)
    return ", ".join(f"{sum(line.state == state for line in lines)} {state}" for state in states)
