"""The project's commands: ``kedro run`` with readable errors, ``kedro study`` and ``chat``."""

import functools
import sys
import traceback
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NoReturn

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import CONTEXT_SETTINGS, _split_params, env_option

from gemma_alignment.errors import NothingToDo, RunInterrupted, UserError, brief, chain
from gemma_alignment.parameters.cluster import ENGINES
from gemma_alignment.redaction import scrubbed, watch_logs

ERRORS = "errors.log"
"""Where the tracebacks of errors that nobody foresaw go, in the folder where the command was typed."""
SEQUENTIAL = "SequentialRunner"
"""Kedro's runner of one node after the other."""


@click.group(context_settings=CONTEXT_SETTINGS, name="gemma-alignment")
def cli() -> None:
    """Commands of this project."""


def readable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let errors that the user can mend end as one message and exit status 1, without a traceback or a secret."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        watch_logs()
        try:
            return function(*args, **kwargs)
        except Exception as error:
            _exit(error)

    return wrapped


def _exit(error: Exception) -> NoReturn:
    """Exit with one message: of an error that nobody foresaw its cause, and where its traceback is."""
    from gemma_alignment.explain import explained, where

    if isinstance(error, click.ClickException | click.exceptions.Exit | click.Abort):
        raise error  # click's own words for a wrong option
    for cause in chain(error):
        if isinstance(cause, RunInterrupted):
            click.secho(f"The run was {cause}.", err=True, fg="red")
            sys.exit(cause.code)
        if isinstance(cause, NothingToDo):
            click.echo(str(cause))
            sys.exit(0)
    if (text := explained(error)) is not None:
        click.secho(f"Error: {scrubbed(text)}", err=True, fg="red")
        sys.exit(1)
    log = _keep_traceback(error)
    click.secho(f"Error: {scrubbed(brief(error))}", err=True, fg="red")
    click.secho(f"  in {where(error)}", err=True)
    click.secho(f"  its traceback: {log}", err=True)
    sys.exit(1)


def _keep_traceback(error: Exception) -> Path:
    """Add a traceback to the log file of the folder, beside those before it."""
    log = Path.cwd() / ERRORS
    with log.open("a", encoding="utf-8") as file:
        file.write(f"--- {datetime.now():%Y-%m-%d %H:%M:%S}  {scrubbed(' '.join(sys.argv))}\n")
        file.write(scrubbed("".join(traceback.format_exception(error))) + "\n")
    return log


@functools.wraps(kedro_run.callback)  # type: ignore[arg-type]
def _run(*args: Any, **kwargs: Any) -> Any:
    from gemma_alignment.hooks.paths import absolute_tree
    from gemma_alignment.pipelines import several

    if (runner := kwargs.get("runner")) not in (None, SEQUENTIAL):
        raise UserError(
            f"--runner={runner}: the records and MLflow runs of the stages follow one another, so nodes do too. Leave "
            "it out; several runs at a time are kedro study --workers"
        )
    if several.is_another():
        from gemma_alignment.pipelines.arm_nodes import answer_with_policy, train_policy

        sys.exit(several.follow(train_policy, answer_with_policy))
    kwargs["params"] = absolute_tree(kwargs.get("params") or {})
    with several.first():
        return kedro_run.callback(*args, **kwargs)  # type: ignore[misc]


run = click.Command(
    name="run",
    callback=readable(_run),
    params=kedro_run.params,
    help=kedro_run.help,
    context_settings=CONTEXT_SETTINGS,
)
"""``kedro run``; ``python -m gemma_alignment`` looks for it under this name."""
cli.add_command(run)


def _matrix(function: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which study is meant."""
    for option in (
        click.option(
            "--sweep",
            multiple=True,
            metavar="PARAMETER=VALUES",
            help="Runs beside the baseline for other values, such as grpo.group_size=2,4,6,8. May be repeated.",
        ),
        click.option(
            "--ablate",
            multiple=True,
            metavar="SETTING",
            help="Runs beside the baseline for each other value of a setting, such as kl_placement. May be repeated.",
        ),
        click.option("--quick", is_flag=True, help="One seed, small, in a data folder of its own."),
        env_option,
        click.option("--params", default="", callback=_split_params, help="As for kedro run, for every run."),
        click.option("--seeds", help="Seeds and ranges, such as 42,123 or 1-20. Default: those of conf."),
        click.option("--methods", help="The arms, such as ppo,grpo. Default: those of conf."),
    ):
        function = option(function)
    return function


@cli.group(invoke_without_command=True, context_settings=CONTEXT_SETTINGS)
@_matrix
@click.option("--workers", type=click.IntRange(min=1), help="Runs at a time. Default: one a core; 1 on a GPU.")
@click.option("--engine", type=click.Choice(ENGINES), default="local", show_default=True, help="Where the runs run.")
@click.option("--address", metavar="HOST:PORT", help="Head of the Ray cluster; auto: this machine's.")
@click.option("--processes-per-run", type=click.IntRange(min=1), default=1, help="Processes that train one policy.")
@click.option("--dry-run", is_flag=True, help="Show the runs and their commands, and run nothing.")
@click.option("--resume", is_flag=True, help="Finish what is not finished, interrupted runs from their checkpoints.")
@click.pass_context
@readable
def study(
    context: click.Context, workers: int | None, engine: str, address: str | None, processes_per_run: int,
    dry_run: bool, resume: bool, **options: Any,
) -> None:  # fmt: skip
    """Run the matrix methods x seeds, one process a run, under one MLflow run; then evaluate and report.

    \b
    kedro study                                   the study of conf: 2 methods x 3 seeds
    kedro study --quick                           one seed, small, in data/quick
    kedro study --seeds 1-20 --workers 4          more seeds, four runs at a time
    kedro study --sweep grpo.group_size=2,4,8     one setting varied, beside the baseline
    kedro study --resume                          only what is not finished
    kedro study --engine slurm                    the runs as a job array; ray: as tasks of a Ray cluster
    kedro study status                            what is done, running, failed, left
    """
    from gemma_alignment.study.command import planned, show, start

    if context.invoked_subcommand is not None:
        return
    asked = planned(_project(context), **options)
    if dry_run:
        sys.exit(0 if show(asked, resume, processes_per_run) else 1)
    else:
        sys.exit(start(asked, workers, resume, engine, address, processes_per_run))


@study.command()
@_matrix
@click.pass_context
@readable
def status(context: click.Context, **options: Any) -> None:
    """What of the matrix is done, running, failed and left."""
    from gemma_alignment.study.command import planned, show_status

    show_status(planned(_project(context), **options))


@study.command()
@click.option("--port", default=5000, show_default=True, help="Where the server listens, on this machine alone.")
@click.pass_context
@readable
def ui(context: click.Context, port: int) -> None:
    """MLflow's pages, and the address that compares the arms."""
    from gemma_alignment.study.view import show

    show(_project(context), port)


@cli.command(context_settings=CONTEXT_SETTINGS)
@click.option("--method", required=True, help="The arm, such as grpo.")
@click.option("--seed", type=int, help="The seed of the policy. Default: that of conf.")
@click.option("--compare", is_flag=True, help="Show the SFT model's answer beside it.")
@click.option("--temperature", type=click.FloatRange(min=0), help="0 takes the likeliest token. Default: rollout's.")
@click.option("--params", default="", callback=_split_params, help="As for kedro run: data_root, variant, runtime.")
@env_option
@click.pass_context
@readable
def chat(
    context: click.Context, method: str, seed: int | None, compare: bool, temperature: float | None,
    params: dict[str, Any], env: str | None,
) -> None:  # fmt: skip
    """Ask a trained policy: prompts typed one by one, or one a line from a file or a pipe."""
    from gemma_alignment.chat import Conversation, Trained, talk
    from gemma_alignment.dotted import dotted
    from gemma_alignment.study.project import read_parameters

    given = dotted(params) | ({} if seed is None else {"seed": seed})
    project = _project(context)
    parameters = read_parameters(project, env, given)
    trained = Trained.find(project, method, parameters)
    conversation = Conversation(trained, parameters, temperature)
    for line in talk(conversation, _prompts(), compare):
        click.echo(line)


def _prompts() -> Iterator[str]:
    """Lines of the standard input; on a terminal after a sign, until an empty one."""
    if not sys.stdin.isatty():
        yield from sys.stdin
        return
    click.echo("A prompt a line; an empty line ends.", err=True)
    try:
        while line := click.prompt(">", default="", show_default=False, prompt_suffix=" "):
            yield line
    except click.Abort:  # Ctrl-D and Ctrl-C end it too
        click.echo(err=True)


def _project(context: click.Context) -> Path:
    """The root of the project that Kedro found, else this folder."""
    return Path.cwd() if context.obj is None else Path(context.obj.project_path)
