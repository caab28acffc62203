"""What ``kedro study`` and ``kedro study status`` do with their options."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from gemma_alignment.config import build
from gemma_alignment.parameters.study import StudyParameters
from gemma_alignment.study.plan import Plan, dotted, parse_names, parse_seeds
from gemma_alignment.study.project import read_parameters
from gemma_alignment.study.status import counted, status_of

COLORS = {"finished": "green", "running": "cyan", "failed": "red", "killed": "red", "vanished": "red"}


@dataclass(frozen=True)
class Asked:
    """A plan and the project and parameters that it is for."""

    project: Path
    plan: Plan
    parameters: Mapping[str, Any]

    @property
    def data_root(self) -> Path:
        """The folder of its data."""
        return self.project / str(self.parameters["data_root"])


def planned(
    project: Path,
    env: str | None,
    params: Mapping[str, Any],
    methods: str | None,
    seeds: str | None,
    quick: bool,
) -> Asked:
    """The plan that the options ask for; what they do not say, section ``study`` says.

    Raises:
        UserError: for options and parameters that mean nothing.
    """
    given = dotted(params)
    settings = build(StudyParameters, read_parameters(project, env, {})["study"], "study")
    if quick:
        given = {**settings.quick, **given}
    usual = settings.quick_seeds if quick else settings.seeds
    plan = Plan(
        methods=settings.methods if methods is None else parse_names(methods),
        seeds=usual if seeds is None else parse_seeds(seeds),
        params=given,
        env=env,
    )
    return Asked(project, plan, read_parameters(project, env, given))


def start(asked: Asked, workers: int | None) -> int:
    """Run it here; the exit status."""
    from gemma_alignment.study.local import run_study

    return run_study(asked.project, asked.plan, workers, Console())


def show(asked: Asked) -> None:
    """The runs, each with the command that does the same by hand."""
    console = Console(highlight=False, soft_wrap=True)
    plan = asked.plan
    for run in (plan.preparation, *plan.arms, plan.closing):
        console.print(f"{run.label:40} {run.command()}", markup=False)


def show_status(asked: Asked) -> None:
    """One line a stage and run."""
    console = Console(highlight=False, soft_wrap=True)
    iterations = int(asked.parameters["policy_optimization"]["num_iterations"])
    lines = status_of(asked.plan, asked.data_root, iterations)
    for line in lines:
        color = COLORS.get(line.state, "default")
        console.print(f"{line.name:24} [{color}]{line.state:10}[/] {line.detail}")
    console.print(counted(lines))
