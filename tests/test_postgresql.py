"""The shared tracking server as ``docs/scaling.md`` starts it, on a real PostgreSQL: nothing lost, nothing doubled."""

import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from ports import free_port

from gemma_alignment.datasets.local_store import Point
from gemma_alignment.datasets.metric_writer import MetricWriter

WRITERS, KEYS, RATE = 6, 10, 100
"""Six runs, each with ten metrics ten times a second."""
DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"


def postgres():
    """The folder of PostgreSQL's programs: Debian keeps those of a server off the path."""
    on_path = shutil.which("initdb")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) if on_path is None else [Path(on_path)]
    return found[-1].parent if found else None


@pytest.fixture(scope="module")
def database():
    """A PostgreSQL of its own on a free port, whose user needs no password on this machine."""
    psycopg2 = pytest.importorskip("psycopg2", reason="the extra server is not installed")
    programs = postgres()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed")
    folder, port = Path(tempfile.mkdtemp()), free_port()  # pytest's own folders are closed to other users
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if user:  # it refuses to run as root
        shutil.chown(folder, "postgres")
    data = folder / "data"
    subprocess.run(
        [*user, programs / "initdb", "-D", data, "-A", "trust", "-U", "mlflow"], check=True, stdout=subprocess.DEVNULL
    )
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    control = [*user, programs / "pg_ctl", "-D", data, "-w", "-t", "300", "-l", folder / "log"]
    subprocess.run([*control, "-o", options, "start"], check=True, stdout=subprocess.DEVNULL)
    with closing(psycopg2.connect(f"postgresql://mlflow@127.0.0.1:{port}/postgres")) as connection:
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE mlflow")
    yield f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow"
    subprocess.run([*control, "-m", "immediate", "stop"], check=False, stdout=subprocess.DEVNULL)
    shutil.rmtree(folder)


def documented(uri, port, artifacts):
    """The command of the document, with this test's own database, port and folder."""
    (line,) = [one for one in DOCUMENT.read_text().splitlines() if one.startswith("mlflow server ")]
    words = shlex.split(line)
    own = {"--backend-store-uri": uri, "--port": str(port), "--artifacts-destination": str(artifacts)}
    for option, value in own.items():
        words[words.index(option) + 1] = value
    return words


@pytest.fixture(scope="module")
def server(database, tmp_path_factory):
    import requests

    folder, port = tmp_path_factory.mktemp("server"), free_port()
    words = documented(database, port, folder / "artifacts")
    assert words[words.index("--host") + 1] == "127.0.0.1"
    process = subprocess.Popen(
        [sys.executable, "-m", *words], cwd=folder, start_new_session=True,
        env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        stdout=(folder / "log").open("wb"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    uri, deadline = f"http://127.0.0.1:{port}", time.monotonic() + 900
    while time.monotonic() < deadline:
        with suppress(requests.RequestException):
            if requests.get(f"{uri}/health", timeout=2).ok:
                break
        assert process.poll() is None, (folder / "log").read_text()
        time.sleep(0.3)
    yield SimpleNamespace(uri=uri, database=database, artifacts=folder / "artifacts")
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


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
    address = server.database.replace("+psycopg2", "")
    with closing(psycopg2.connect(address)) as connection, connection.cursor() as cursor:
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
