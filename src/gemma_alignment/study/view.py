"""A view of MLflow's table of runs that compares the arms: which rows, which columns, in what order."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from gemma_alignment.hooks.store import SERVERS, VIEW, anchored, view_address

EXPERIMENT = "gemma-alignment"
DEFAULT = "sqlite:///mlflow.db"

TAG = f"mlflow.sharedViewState.{VIEW}"
"""Where MLflow's page looks for the view that ``viewStateShareKey`` in an address names."""

JOBS = "MLFLOW_SERVER_ENABLE_JOB_EXECUTION"
"""MLflow's own switch for the eight processes that wait for scoring jobs, which nothing here asks for."""

COLUMNS = (
    "metrics.`eval/gold_mean`",
    "metrics.`eval/kl_to_reference`",
    "metrics.`eval/score_mean`",
    "tags.`data_root`",
    "tags.`seed`",
    "tags.`study`",
)
"""In the order in which the page shows them: by group, then by name. More would push the score off a narrow screen."""

STATE = {
    "searchFilter": "tags.method != 'none'",
    "orderByKey": "tags.`study`",
    "orderByAsc": False,
    "startTime": "ALL",
    "lifecycleFilter": "Active",
    "selectedColumns": COLUMNS,
}


def share(client: Any, experiment: str) -> str:
    """Keep the view with the experiment; the experiment's number.

    The experiment is made where no run has made it yet.
    """
    found = client.get_experiment_by_name(experiment)
    number = found.experiment_id if found is not None else client.create_experiment(experiment)
    client.set_experiment_tag(number, TAG, json.dumps(STATE))
    return str(number)


def command(uri: str, port: int) -> list[str]:
    """What starts MLflow's own server on a store, on this machine alone."""
    options = ["--backend-store-uri", uri, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "ui", *options]


def show(project: Path, port: int) -> None:
    """Say where the arms stand side by side, and start the server unless the store is one that runs."""
    import click
    from mlflow import MlflowClient

    uri = anchored(os.environ.get("MLFLOW_TRACKING_URI") or DEFAULT, project)
    number = share(MlflowClient(uri), EXPERIMENT)
    click.echo(f"The arms side by side: {view_address(uri, number, port)}")
    if not uri.startswith(SERVERS):
        os.environ.setdefault(JOBS, "false")
        os.execv(sys.executable, command(uri, port))  # noqa: S606 - no shell is wanted
