"""A Ray cluster of machines with names and networks of their own: bad ones, a study that is shot, a shared server."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import namespaces
import pytest
import tracking_server
from planted import holding

from gemma_alignment.liveness import runs
from gemma_alignment.study.lock import LOCK

pytestmark = [pytest.mark.cli, pytest.mark.pipeline, pytest.mark.slow]
PATIENT = {
    "RAY_raylet_start_wait_time_s": "400", "RAY_enable_worker_prestart": "0", "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
}  # fmt: skip
KEY = "sk-planted-on-a-cluster-0123"
SIZE = ("--object-store-memory=80000000", "--disable-usage-stats", "--block")


class Fleet:
    """A head on node1 that gives no place to runs, and what joins it."""

    def __init__(self, network, folder):
        self._network, self.folder, self._log = network, folder, (folder / "log").open("ab")
        self.head = network.machine("node1", folder)
        self.address = f"{self.head.address}:6379"
        self._start(
            self.head, "--head", "--port=6379", "--num-cpus=0", "--include-dashboard=false", f"--temp-dir={folder}",
            before="true", variables={},
        )  # fmt: skip

        wait_until(self._is_up)

    def _is_up(self):
        with suppress(OSError), socket.create_connection((self.head.address, 6379), 5):
            return True
        return False

    def _start(self, machine, *words, before, variables):
        subprocess.Popen(
            machine.words(
                sys.executable, "-m", "ray.scripts.scripts", "start", f"--node-ip-address={machine.address}", *words,
                *SIZE, before=before,
            ),
            env={**os.environ, **PATIENT, **variables}, stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def join(self, name, before="true", **variables):
        """A machine with room for one run."""
        machine = self._network.machine(name, self.folder)
        self._start(machine, f"--address={self.address}", "--num-cpus=1", before=before, variables=variables)
        return machine

    def wait_for(self, number):
        """Until the cluster has so many machines that are alive."""
        script = (
            "import sys, time, ray\n"
            "ray.init(address=sys.argv[1], logging_level='ERROR')\n"
            "while sum(node['Alive'] for node in ray.nodes()) != int(sys.argv[2]): time.sleep(1)\n"
        )
        words = self.head.words(sys.executable, "-c", script, self.address, number)
        for _ in range(5):  # the head may not answer yet
            done = subprocess.run(words, env={**os.environ, **PATIENT}, check=False, timeout=600, capture_output=True)
            if done.returncode == 0:
                return
            time.sleep(10)
        raise AssertionError(done.stderr)

    def command_lines(self):
        """Those of every process on every machine."""
        pids = [pid for machine in self._network.machines for pid in machine.pids()]
        return [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids if runs(pid, None)]

    def study(self, project, *words, **variables):
        """``kedro study`` on node1."""
        kedro = ("kedro", "study", "--env=test", "--engine=ray", f"--address={self.address}", *words)
        return subprocess.Popen(
            self.head.words(sys.executable, "-m", *kedro), cwd=project.root, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, env=project.environment({**PATIENT, **variables}),
        )  # fmt: skip


@pytest.fixture
def fleet(monkeypatch):
    pytest.importorskip("ray", reason="the extra ray is not installed")
    if (reason := namespaces.missing()) is not None:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="ga"))  # of a short name: sockets lie there
    with namespaces.Network() as network:
        yield Fleet(network, folder)
    shutil.rmtree(folder, ignore_errors=True)


def wait_until(there, process=None, seconds=900):
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate(timeout=60)
        time.sleep(0.2)


def history(project, run):
    path = project.data / f"07_model_output/{run}/history.jsonl"
    return path.read_text().splitlines() if path.exists() else []


NUMBERS = ("history.jsonl", "responses.jsonl", "samples.jsonl")


def bytes_of(project, *found):
    folder = project.data / "07_model_output"
    return {f"{run}/{name}": (folder / run / name).read_bytes() for run in found for name in NUMBERS}


def test_every_machine_that_could_not_do_a_run_is_named_before_anything_is_spent(fleet, project, tmp_path):
    data, other, old = project.data, tmp_path / "other", tmp_path / "old"
    for folder in (data, other, old / "peft-0.1.dist-info"):
        folder.mkdir(parents=True)
    (other / LOCK).write_text(json.dumps({"token": "of another study"}))
    (old / "peft-0.1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: peft\nVersion: 0.1\n")
    path = os.environ.get("PYTHONPATH", "")
    fleet.join("good")
    fleet.join("reader", before=f"mount --bind {data} {data} && mount -o remount,ro,bind {data}")
    fleet.join("stranger", before=f"mount --bind {other} {data}")
    fleet.join("empty", before=f"mount -t tmpfs none {project.root}")
    fleet.join("old", PYTHONPATH=f"{old}:{path}")
    (tmp_path / "gemma_alignment").mkdir()
    (tmp_path / "gemma_alignment" / "__init__.py").write_text("import no_such_package")
    fleet.join("bare", PYTHONPATH=str(tmp_path))
    fleet.wait_for(7)
    process = fleet.study(project, "--seeds=1", f"--params=data_root={data}")
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 1, said
    lines = {line.split(":")[0].split(" ")[2]: line for line in said.splitlines() if line.startswith("  ")}
    assert set(lines) == {"reader", "stranger", "empty", "old", "bare"}, said
    assert "The study was not started; of the machines that its runs would get:" in said
    assert "the data folder cannot be written (" in lines["reader"] and "give the user of the runs" in lines["reader"]
    assert f"{data} is another folder here than on the study's machine" in lines["stranger"]
    assert f"the project's folder {project.root} is not there" in lines["empty"]
    assert "peft 0.1 (the study's machine has 0.2" in lines["old"] and "torch" not in lines["old"]
    assert "No module named 'no_such_package'" in lines["bare"] and "install the same packages" in lines["bare"]
    assert sorted(path.name for path in data.iterdir()) == [LOCK]
    assert project.runs() == []


def test_a_study_that_is_shot_is_finished_as_if_it_had_not_been(fleet, project, monkeypatch):
    project.run("data_processing", "sft", "reward_model")
    hang = {"SMALL_HANG": "grpo:1,ppo:1", "SMALL_HANG_S": "900"}
    for name in ("node2", "node3"):
        fleet.join(name, **hang)
    fleet.wait_for(3)
    process = fleet.study(project, "--seeds=1", OPENAI_API_KEY=KEY)
    wait_until(lambda: len(history(project, "grpo/seed=1")) == len(history(project, "ppo/seed=1")) == 2, process)
    first = {run: project.record(f"{run}/seed=1") for run in ("grpo", "ppo")}
    assert not [words for words in fleet.command_lines() if KEY.encode() in words]
    process.send_signal(signal.SIGKILL)
    resumed = fleet.study(project, "--seeds=1", "--resume", OPENAI_API_KEY=KEY)  # at once, while the runs just end
    process.wait()
    said, _ = resumed.communicate(timeout=900)
    assert resumed.returncode == 0, said
    assert "3 processes done, 0 failed" in said
    on_ray = bytes_of(project, "grpo/seed=1", "ppo/seed=1")
    for run, record in first.items():
        assert {record.host} <= {"node2", "node3"} and not runs(record.pid, record.born)
        again = project.record(f"{run}/seed=1")
        assert (again.status, again.mlflow_run_id) == ("finished", record.mlflow_run_id)
        assert again.pid != record.pid
        points = project.client.get_metric_history(record.mlflow_run_id, "reward/score_mean")
        assert [point.step for point in points] == [0, 1, 2, 3]
    assert set(project.states().values()) == {"FINISHED"}
    assert [run.info.run_name[:6] for run in project.runs()].count("study-") == 1
    assert KEY not in said and holding(project.root, [KEY]) == holding(fleet.folder, [KEY]) == []
    for method in ("ppo", "grpo"):
        project.run(method, seed=1, overwrite=True)
    assert bytes_of(project, "grpo/seed=1", "ppo/seed=1") == on_ray


def test_six_runs_on_machines_of_which_one_is_lost_are_those_of_one_machine(fleet, project, tmp_path):
    """Of the whole study every number is the same to the byte: preparation, arms, what was judged, the comparison."""
    arms = [f"{method}/seed={seed}" for method in ("grpo", "ppo") for seed in (1, 2, 3)]
    every = ",".join(arm.replace("/seed=", ":") for arm in arms)
    lost = fleet.join("node2", SMALL_HANG=every, SMALL_HANG_S="900")
    for name in ("node3", "node4"):
        fleet.join(name)
    fleet.wait_for(4)
    process = fleet.study(project, "--seeds=1,2,3")

    def hanging():
        begun = [arm for arm in arms if len(history(project, arm)) == 2]
        return [arm for arm in begun if project.record(arm).host == "node2"]

    wait_until(hanging, process)
    (arm,) = hanging()
    first, lines = project.record(arm), history(project, arm)
    lost.power_off()
    said, _ = process.communicate(timeout=1800)
    assert process.returncode == 0, said
    again = project.record(arm)
    assert again.host in ("node3", "node4") and again.mlflow_run_id == first.mlflow_run_id
    assert history(project, arm)[:2] == lines, "what was trained before its checkpoint is not trained again"
    here = tmp_path / "here"
    code, output = project.command("kedro", "study", "--env=test", "--seeds=1,2,3", f"--params=data_root={here}")
    assert code == 0, output
    found, expected = (
        {path.relative_to(root).as_posix(): path.read_bytes() for name in (*NUMBERS, "comparison.json")
         for path in root.rglob(name)}
        for root in (project.data, here)
    )  # fmt: skip
    assert {f"07_model_output/{arm}/history.jsonl" for arm in arms} < expected.keys()
    assert found.keys() == expected.keys()
    assert [name for name in expected if found[name] != expected[name]] == []


def test_six_runs_on_three_machines_stand_under_one_parent_and_outlive_the_server(fleet, project, tmp_path):
    import psycopg2
    from mlflow import MlflowClient

    every = ",".join(f"{arm}:{seed}" for arm in ("grpo", "ppo") for seed in (1, 2, 3))
    hang = {"SMALL_HANG": every, "SMALL_HANG_S": "40"}
    hosts = {"node2", "node3", "node4"}
    for name in sorted(hosts):
        fleet.join(name, **hang)
    fleet.wait_for(4)
    on, address = fleet.head.words, fleet.head.address
    with tracking_server.database(on) as found, tracking_server.serving(found.uri, tmp_path, on, address) as server:
        process = fleet.study(project, "--seeds=1,2,3", MLFLOW_TRACKING_URI=server.uri)
        wait_until(lambda: history(project, "grpo/seed=1"), process)
        server.shoot()
        time.sleep(20)
        server.start()
        said, _ = process.communicate(timeout=1800)
        assert process.returncode == 0, said
        client = MlflowClient(server.uri)
        experiment = client.get_experiment_by_name("gemma-alignment").experiment_id
        (study,) = client.search_runs([experiment], "tags.stage = 'study'")
        under = client.search_runs([experiment], f"tags.mlflow.parentRunId = '{study.info.run_id}'")
        arms = {run.info.run_name: run for run in under if "method" in run.data.tags}
        assert sorted(arms) == [f"{method}-seed{seed}" for method in ("grpo", "ppo") for seed in (1, 2, 3)]
        assert {run.info.status for run in [study, *under]} == {"FINISHED"}
        assert {run.data.tags["host"] for run in arms.values()} == hosts
        with closing(psycopg2.connect(found.socket)) as connection, connection.cursor() as cursor:
            for run in arms.values():
                tags = run.data.tags
                folder = project.data / f"07_model_output/{tags['method']}/seed={tags['seed']}"
                assert json.loads((folder / "run.json").read_text())["host"] == tags["host"]
                cursor.execute("SELECT key, step, value FROM metrics WHERE run_uuid = %s", (run.info.run_id,))
                stored = [(key, step, value) for key, step, value in cursor.fetchall() if not key.startswith("system/")]
                assert max(Counter((key, step) for key, step, _ in stored).values()) == 1
                assert {(key, step): value for key, step, value in stored} == _points(folder)


def _points(folder):
    """What the files of a run say that its server has to have."""
    points = {}
    for name in ("history.jsonl", "timing.jsonl"):
        for line in (folder / name).read_text().splitlines():
            row = json.loads(line)
            sent = {key: value for key, value in row.items() if "/" in key}
            points |= {(key, row["iteration"]): value for key, value in sent.items()}
    return points
