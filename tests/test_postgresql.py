"""The shared tracking server as ``docs/scaling.md`` starts it, on a real PostgreSQL: nothing lost, nothing doubled."""

import multiprocessing
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
import tracking_server

from gemma_alignment.datasets.local_store import Point
from gemma_alignment.datasets.metric_writer import MetricWriter

WRITERS, KEYS, RATE = 6, 10, 100
"""Six runs, each with ten metrics ten times a second."""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    with tracking_server.database() as found, tracking_server.serving(found.uri, folder) as server:
        yield SimpleNamespace(uri=server.uri, socket=found.socket, artifacts=server.artifacts)


def write(uri, run_id, seconds):
    """What a run does: queue points as they come, and at its end send whatever the run does not hold."""
    from mlflow import MlflowClient

    writer, points = MetricWriter(MlflowClient(uri), run_id), []
    begin = time.monotonic()
    for step in range(seconds * RATE // KEYS):
        now = time.time_ns() // 1_000_000
        new = [Point(f"key/{key}", step + key / KEYS, now, step) for key in range(KEYS)]
        points += new
        writer.add(new)
        time.sleep(max(0.0, begin + (step + 1) * KEYS / RATE - time.monotonic()))
    writer.close(points)


@pytest.mark.parametrize("seconds", [5, pytest.param(60, marks=pytest.mark.slow)])
def test_nothing_is_lost_and_nothing_doubled(server, seconds):
    import psycopg2
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    experiment = client.create_experiment(f"load-{seconds}")
    parent = client.create_run(experiment, run_name="study")
    tags = {"mlflow.parentRunId": parent.info.run_id}
    runs = [client.create_run(experiment, run_name=f"run-{i}", tags=tags).info.run_id for i in range(WRITERS)]
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write, args=(server.uri, run, seconds)) for run in runs]
    for one in writers:
        one.start()
    for one in writers:
        one.join()
    assert [one.exitcode for one in writers] == [0] * WRITERS
    steps = range(seconds * RATE // KEYS)
    expected = {(f"key/{key}", step): step + key / KEYS for key in range(KEYS) for step in steps}
    with closing(psycopg2.connect(server.socket)) as connection, connection.cursor() as cursor:
        for run in runs:
            cursor.execute("SELECT key, step, value FROM metrics WHERE run_uuid = %s", (run,))
            rows = cursor.fetchall()
            assert max(Counter((key, step) for key, step, _ in rows).values()) == 1
            assert {(key, step): value for key, step, value in rows} == expected
    under = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{parent.info.run_id}'")
    assert {run.info.run_id for run in under} == set(runs)


def test_artifacts_go_through_the_server(server, tmp_path):
    from mlflow import MlflowClient

    client = MlflowClient(server.uri)
    run = client.create_run(client.create_experiment("artifacts"))
    (tmp_path / "report.html").write_text("é")
    client.log_artifact(run.info.run_id, str(tmp_path / "report.html"))
    assert run.info.artifact_uri.startswith("mlflow-artifacts:/")
    (kept,) = server.artifacts.rglob("report.html")
    assert kept.read_text() == "é"
    assert Path(client.download_artifacts(run.info.run_id, "report.html", str(tmp_path))).read_text() == "é"
