"""The MLflow store: at the project's root wherever the command was typed, or a server that answers; what it holds."""

import logging
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gemma_alignment.errors import UserError, chain

logger = logging.getLogger(__name__)

SCHEME = "sqlite:///"
SERVERS = ("http://", "https://")
VIEW = "arms"
"""The name under which the view of every arm is kept with the experiment; that of a study's is the study's name."""
PORT = 5000
"""Where ``make ui`` listens."""
ANSWER = 10.0
"""Seconds that a server has to answer before a run starts."""
AWAY = 600.0
"""Seconds for which a study and its runs wait for a server that answered when the study began."""
ASKED = 2.0
"""Seconds between two questions to it."""
QUESTION = "/api/2.0/mlflow/experiments/get-by-name"
"""What it is asked: a row of its database, or that there is none."""
PARENT = "GEMMA_ALIGNMENT_PARENT_RUN"
"""Environment variable: the id of the study's MLflow run, under which this session's runs are nested."""


def anchored(uri: str, root: Path) -> str:
    """A relative SQLite address as the file under ``root``; any other address as it is."""
    path = uri.removeprefix(SCHEME)
    if not uri.startswith(SCHEME) or path.startswith("/") or path.startswith(":memory:"):
        return uri
    return f"{SCHEME}{(root / path).as_posix()}"


def shown(uri: str) -> str:
    """The address of a store without the name and password that it may carry."""
    parts = urlsplit(uri)
    return uri.replace(f"{parts.netloc.rpartition('@')[0]}@", "***@", 1) if "@" in parts.netloc else uri


def check_server(uri: str, patience: float = 0.0) -> None:
    """Refuse a tracking server that does not answer; MLflow itself would try for minutes, then show a traceback.

    It is asked again for ``patience`` seconds.

    Raises:
        UserError: with the address.
    """
    begin, is_told = time.monotonic(), False
    while (why := _absence(uri)) is not None:
        if time.monotonic() - begin >= patience:
            raise UserError(
                f"The MLflow server {shown(uri)} does not answer ({why}). Start it, correct MLFLOW_TRACKING_URI, or "
                "unset it for the store at the project's root."
            )
        if not is_told:
            logger.warning("The MLflow server %s does not answer: it is waited for, %.0f s", shown(uri), patience)
        is_told = True
        time.sleep(ASKED)


def _absence(uri: str) -> str | None:
    """Why a server does not answer; None where it does, even if that it refuses: the first real request says more.

    It is asked for something of its database, as this user: a proxy before it answers by itself, with 401 to whom it
    does not know and with 502 while there is no server, and a server whose database is away with 503.
    """
    import requests
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(
            get_default_host_creds(uri), QUESTION, "GET", max_retries=0, retry_codes=(), timeout=ANSWER,
            params={"experiment_name": "Default"},
        )  # fmt: skip
    except MlflowException as error:
        causes = [one for one in chain(error) if isinstance(one, requests.RequestException)]
        is_there = not causes or isinstance(causes[0], requests.exceptions.SSLError)
        return None if is_there else type(causes[0]).__name__
    return f"HTTP {answer.status_code}" if answer.status_code >= 500 else None


def await_server(uri: str) -> None:
    """Wait for a server that was there when the study began; a store that is a file needs no waiting.

    Raises:
        UserError: when it stays away.
    """
    if uri.startswith(SERVERS):
        check_server(uri, AWAY)


def anchor(context: Any) -> None:
    """Let a relative SQLite store of the session, and the artifacts of any, lie at the project's root.

    A run of a study waits for a server that is away: it was there when the study began.

    Raises:
        UserError: for a server that does not answer.
    """
    loader = context.config_loader
    conf = dict(loader["mlflow"])
    server = dict(conf.get("server") or {})
    uri = server.get("mlflow_tracking_uri")
    if isinstance(uri, str) and uri.startswith(SERVERS):
        check_server(uri, AWAY if PARENT in os.environ else 0.0)
    if not isinstance(uri, str) or not uri.startswith(SCHEME):
        return
    server["mlflow_tracking_uri"] = anchored(uri, context.project_path)
    tracking = dict(conf.get("tracking") or {})
    artifacts = {"artifact_location": (Path(context.project_path) / "mlruns").as_uri()}
    experiment = {"create_experiment_kwargs": artifacts, **(tracking.get("experiment") or {})}
    loader["mlflow"] = {**conf, "server": server, "tracking": {**tracking, "experiment": experiment}}


def view_address(uri: str, experiment_id: str, view: str, port: int = PORT) -> str:
    """Where MLflow's pages show the arms side by side: on the server of the store, else on that of ``make ui``.

    A name and a password in the address of a server stay out of it.
    """
    server = f"http://127.0.0.1:{port}"
    if uri.startswith(SERVERS):
        scheme, _, rest = uri.rstrip("/").partition("://")
        host, slash, path = rest.partition("/")
        server = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return f"{server}/#/experiments/{experiment_id}/runs?viewStateShareKey={view}"


def find_run(client: Any, run_id: str | None) -> Any:
    """A run of the store, or None where it does not exist or was deleted."""
    from mlflow.exceptions import MlflowException

    if run_id is None:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None
