"""What ``kedro study`` and ``kedro study status`` do with their options."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from gemma_alignment.config import build
from gemma_alignment.dotted import dotted
from gemma_alignment.errors import UserError
from gemma_alignment.hooks.feasible import check_budget, check_processes
from gemma_alignment.hooks.paths import absolute
from gemma_alignment.parameters.study import StudyParameters
from gemma_alignment.storage.address import folder_under
from gemma_alignment.study.lock import renew
from gemma_alignment.study.oversight import fetched, held
from gemma_alignment.study.plan import Plan, parse_names, parse_seeds
from gemma_alignment.study.preflight import GPU, Line, preflight, storage
from gemma_alignment.study.project import Opened, read_parameters
from gemma_alignment.study.status import counted, status_of
from gemma_alignment.study.variants import ablations, accepted, check, each_once, sweeps

BROKEN = ("failed", "killed", "vanished")
COLORS = {"finished": "green", "running": "cyan", "other configuration": "yellow", **dict.fromkeys(BROKEN, "red")}


@dataclass(frozen=True)
class Asked:
    """A plan and the project and parameters that it is for."""

    project: Path
    plan: Plan
    parameters: Mapping[str, Any]
    left_out: Sequence[str] = ()
    """Values of an ablation that their methods refuse, each with the reason."""

    @property
    def data_root(self) -> Path:
        """The folder of its data here."""
        return folder_under(self.project, self.parameters["data_root"])


def planned(
    project: Path,
    env: str | None,
    params: Mapping[str, Any],
    methods: str | None,
    seeds: str | None,
    quick: bool,
    ablate: Sequence[str] = (),
    sweep: Sequence[str] = (),
) -> Asked:
    """The plan that the options ask for; what they do not say, section ``study`` says.

    Raises:
        UserError: for options and parameters that mean nothing.
    """
    given = absolute(dotted(params))
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
    parameters = read_parameters(project, env, given)
    for method in plan.methods:
        check_budget(method, parameters)
    taken, refused = accepted(ablations(ablate, plan.methods, parameters), parameters)
    swept = sweeps(sweep, plan.methods, parameters)
    for variant in swept:
        check(variant, parameters)
    variants = each_once([*taken, *swept])
    return Asked(project, replace(plan, variants=variants), parameters, refused)


def start(
    asked: Asked, workers: int | None, resume: bool, engine: str = "local", address: str | None = None,
    processes: int = 1,
) -> int:  # fmt: skip
    """Run it, or what of it is not finished, by an engine; the exit status.

    Raises:
        UserError: before anything runs, for what would be refused later.
    """
    from gemma_alignment.study.engine import engine as found
    from gemma_alignment.study.execution import run_study

    if resume and asked.parameters["overwrite"]:
        raise UserError("--resume goes on with what is there and overwrite=true begins anew: give one of them")
    check_processes(asked.parameters, processes)
    console = Console()
    _say_left_out(asked, console)
    needs = [line for line in _say_needs(asked, console, processes) if line.is_fatal]
    if fatal := [line.what for line in needs if engine == "local" or line.what != GPU]:  # the cluster has its own
        raise UserError(f"The study was not started, for want of: {', '.join(fatal)} (see above)")
    cluster = build(StudyParameters, asked.parameters["study"], "study").cluster
    with held(asked.data_root, str(asked.parameters["data_root"])) as sight:
        bucket = None if sight is None else sight.address
        begin = found(engine, cluster, asked.data_root, address, processes, resume and bucket is None, bucket)
        if not resume:
            renew(asked.data_root)
        return run_study(asked.project, asked.plan, workers, console, resume, begin, processes, sight)


def show(asked: Asked, resume: bool, processes: int = 1) -> bool:
    """The runs, or those that are not finished, each with the command that does the same by hand.

    Returns: whether all that the study needs is there, as far as it can be told without a GPU.

    Raises:
        UserError: for what would be refused later.
    """
    check_processes(asked.parameters, processes)
    console = Console(highlight=False, soft_wrap=True)
    plan = asked.plan
    if resume:
        fetched(asked.data_root, str(asked.parameters["data_root"]), all_of_it=True)
    runs = Opened.open(asked.project, plan).left(plan) if resume else plan.runs
    width = max((len(run.label) for run in runs), default=0)
    for run in runs:
        console.print(f"{run.label:{width}}  {run.command()}", markup=False)
    _say_left_out(asked, console)
    bucket = storage(str(asked.parameters["data_root"]))
    return not any(line.is_missing for line in _say_needs(asked, console, processes, *bucket))


def _say_needs(asked: Asked, console: Console, processes: int, *more: Line) -> Sequence[Line]:
    lines = [*more, *preflight(asked.plan, asked.parameters, asked.data_root, processes)]
    width = max((len(line.what) for line in lines), default=0)
    for line in lines:
        console.print(f"{line.what:{width}}  {line.said}", markup=False, highlight=False, soft_wrap=True)
    return lines


def _say_left_out(asked: Asked, console: Console) -> None:
    for reason in asked.left_out:
        console.print(f"left out  {reason}", markup=False, highlight=False, soft_wrap=True)


def show_status(asked: Asked) -> None:
    """One line a stage and run."""
    console = Console(highlight=False, soft_wrap=True)
    fetched(asked.data_root, str(asked.parameters["data_root"]))
    lines = status_of(asked.plan, asked.project, asked.parameters)
    width, wide = max(len(line.name) for line in lines), max(10, *(len(line.state) for line in lines))
    for line in lines:
        color = COLORS.get(line.state, "default")
        console.print(f"{line.name:{width}}  [{color}]{line.state:{wide}}[/] {line.detail}")
    console.print(counted(lines))
