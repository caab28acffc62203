"""A view of MLflow's table of runs that compares the arms: which rows, which columns, in what order."""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

from gemma_alignment.errors import UserError
from gemma_alignment.hooks.store import SERVERS, VIEW, anchored, view_address

EXPERIMENT = "gemma-alignment"
DEFAULT = "sqlite:///mlflow.db"

TAG = "mlflow.sharedViewState."
"""Where MLflow's page looks for the view that ``viewStateShareKey`` in an address names."""

JOBS = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"
"""MLflow's own switch for the eight processes that wait for scoring jobs, which nothing here asks for."""

COLUMNS = (
    "metrics.`eval/gold_mean`",
    "metrics.`eval/kl_to_reference`",
    "metrics.`eval/score_mean`",
    "metrics.`budget/responses`",
    "tags.`method`",
    "tags.`seed`",
)
"""Of a study's view. More would push the score off a narrow screen."""

COLUMNS_OF_ALL = (*COLUMNS[:3], "tags.`data_root`", "tags.`seed`", "tags.`study`")
"""Where arms of several studies stand below each other; the method is in their names."""

ARMS = "tags.method != 'none'"


def share(client: Any, experiment_id: str, study: str | None = None) -> None:
    """Keep a view with the experiment: of the arms of a study, those that it reused among them, else of every arm."""
    state = {
        "searchFilter": ARMS if study is None else f"tags.study LIKE '%{study}%' and {ARMS}",
        "orderByKey": "tags.`study`" if study is None else "tags.`method`",
        "orderByAsc": study is not None,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "selectedColumns": COLUMNS if study is not None else COLUMNS_OF_ALL,
    }
    client.set_experiment_tag(experiment_id, TAG + (study or VIEW), json.dumps(state))


def newest(client: Any, experiment_id: str) -> str | None:
    """The name of the study that began last; None before the first."""
    found = client.search_runs(
        [experiment_id], "tags.stage = 'study'", order_by=["attributes.start_time DESC"], max_results=1
    )
    return str(found[0].info.run_name) if found else None


def command(uri: str, port: int) -> list[str]:
    """What starts MLflow's own server on a store, on this machine alone."""
    options = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "ui", *options]


def check_free(port: int) -> None:
    """Refuse a port that another program listens on; MLflow says so between lines about its start.

    Raises:
        UserError: with the way to another one.
    """
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just let go of is free
        try:
            found.bind(("127.0.0.1", port))
        except OSError as error:
            raise UserError(
                f"Port {port} is taken, perhaps by MLflow's pages already. Another one: "
                f'make ui ARGS="--port {port + 1}", or kedro study ui --port {port + 1}'
            ) from error


def show(project: Path, port: int) -> None:
    """Say where the arms stand side by side, and start the server unless the store is one that runs.

    Raises:
        UserError: when the port is taken.
    """
    import click
    from mlflow import MlflowClient

    uri = anchored(os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT, project)
    if not uri.startswith(SERVERS):
        check_free(port)
    client = MlflowClient(uri)
    found = client.get_experiment_by_name(EXPERIMENT)
    number = str(found.experiment_id if found is not None else client.create_experiment(EXPERIMENT))
    study = newest(client, number)
    for one in dict.fromkeys((study, None)):
        share(client, number, one)
    click.echo(f"The arms side by side: {view_address(uri, number, study or VIEW, port)}")
    if study is not None:
        click.echo(f"Those of every study:  {view_address(uri, number, VIEW, port)}")
    if not uri.startswith(SERVERS):
        os.environ.setdefault(JOBS, "false")
        os.execv(sys.executable, command(uri, port))  # noqa: S606 - no shell is wanted
