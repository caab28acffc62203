"""The MLflow store at the project's root, wherever the command was typed."""

from pathlib import Path
from typing import Any

SCHEME = "sqlite:///"


def anchored(uri: str, root: Path) -> str:
    """A relative SQLite address as the file under ``root``; any other address as it is."""
    path = uri.removeprefix(SCHEME)
    if not uri.startswith(SCHEME) or path.startswith("/") or path.startswith(":memory:"):
        return uri
    return f"{SCHEME}{(root / path).as_posix()}"


def anchor(context: Any) -> None:
    """Let a relative SQLite store of the session, and the artifacts of any, lie at the project's root."""
    loader = context.config_loader
    conf = dict(loader["mlflow"])
    server = dict(conf.get("server") or {})
    uri = server.get("mlflow_tracking_uri")
    if not isinstance(uri, str) or not uri.startswith(SCHEME):
        return
    server["mlflow_tracking_uri"] = anchored(uri, context.project_path)
    tracking = dict(conf.get("tracking") or {})
    artifacts = {"artifact_location": (Path(context.project_path) / "mlruns").as_uri()}
    experiment = {"create_experiment_kwargs": artifacts, **(tracking.get("experiment") or {})}
    loader["mlflow"] = {**conf, "server": server, "tracking": {**tracking, "experiment": experiment}}
