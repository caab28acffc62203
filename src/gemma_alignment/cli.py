"""The project's commands: ``kedro run`` with readable errors, and ``kedro study``."""

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click
from kedro.framework.cli.project import run as kedro_run
from kedro.framework.cli.utils import CONTEXT_SETTINGS, _split_params, env_option


@click.group(context_settings=CONTEXT_SETTINGS, name="gemma-alignment")
def cli() -> None:
    """Commands of this project."""


def readable(function: Callable[..., Any]) -> Callable[..., Any]:
    """Let errors that the user can mend end as one message and exit status 1, without a traceback."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            _exit(error)

    return wrapped


def _exit(error: Exception) -> NoReturn:
    """Exit with a message where the user can mend the error or stopped the run; else raise it again."""
    from gemma_alignment.explain import chain, explained
    from gemma_alignment.hooks.signals import RunInterrupted

    for cause in chain(error):
        if isinstance(cause, RunInterrupted):
            click.secho(f"The run was {cause}.", err=True, fg="red")
            sys.exit(cause.code)
    if (text := explained(error)) is not None:
        click.secho(f"Error: {text}", err=True, fg="red")
        sys.exit(1)
    raise error


run = click.Command(
    name="run",
    callback=readable(kedro_run.callback),  # type: ignore[arg-type]
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
@click.option("--dry-run", is_flag=True, help="Show the runs and their commands, and run nothing.")
@click.option("--resume", is_flag=True, help="Finish what is not finished, interrupted runs from their checkpoints.")
@click.pass_context
@readable
def study(context: click.Context, workers: int | None, dry_run: bool, resume: bool, **options: Any) -> None:
    """Run the matrix methods x seeds, one process a run, under one MLflow run; then evaluate and report."""
    from gemma_alignment.study.command import planned, show, start

    if context.invoked_subcommand is not None:
        return
    asked = planned(_project(context), **options)
    if dry_run:
        sys.exit(0 if show(asked, resume) else 1)
    else:
        sys.exit(start(asked, workers, resume))


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
    """MLflow's pages on the study's store, and the address at which they compare the arms."""
    from gemma_alignment.study.view import show

    show(_project(context), port)


def _project(context: click.Context) -> Path:
    """The root of the project that Kedro found, else this folder."""
    return Path.cwd() if context.obj is None else Path(context.obj.project_path)
