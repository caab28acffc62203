"""``kedro study --engine ray``: what is refused, and a real cluster of three nodes that loses one."""

import dataclasses
import itertools
import os
import signal
import socket
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import Record
from gemma_alignment.liveness import hold
from gemma_alignment.parameters.cluster import ClusterParameters, SlurmParameters
from gemma_alignment.storage.lease import LEASE, STALE, STUDY
from gemma_alignment.study.attempt import Attempt
from gemma_alignment.study.engine import Site
from gemma_alignment.study.heartbeat import Heartbeat
from gemma_alignment.study.lock import alone
from gemma_alignment.study.machine import Premises
from gemma_alignment.study.plan import Plan, Run
from gemma_alignment.study.processes import Child
from gemma_alignment.study.ray_cluster import Ray, Task, carried, connect, trace

SLURM = SlurmParameters(60, None, None, None, ())
SETTINGS = ClusterParameters(1, 0, None, 3, SLURM)


def fake_ray(**more):
    exceptions = SimpleNamespace(RayError=RuntimeError)
    return SimpleNamespace(init=lambda **words: None, nodes=lambda: [], exceptions=exceptions, **more)


def test_without_the_extra_the_error_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'gemma_alignment\[ray\]'"):
        connect(SETTINGS, None, tmp_path)


@pytest.mark.parametrize("address", ["here", "here:there", ":6379", "ray://head:10001/x"])
def test_an_address_that_is_none_is_refused(monkeypatch, tmp_path, address):
    monkeypatch.setitem(sys.modules, "ray", fake_ray())
    with pytest.raises(UserError, match=f"--address {address}: expected HOST:PORT of the cluster's head, or auto"):
        connect(SETTINGS, address, tmp_path)


def test_an_unreachable_address_is_one_message_at_once(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", fake_ray())
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        port = unheard.getsockname()[1]
        with pytest.raises(UserError, match=rf"--address 127\.0\.0\.1:{port} does not answer \(.*refused\)"):
            connect(SETTINGS, f"127.0.0.1:{port}", tmp_path)


def test_what_ray_refuses_is_one_message(monkeypatch, tmp_path):
    def init(**words):
        raise RuntimeError("Version mismatch: The cluster has:\n    Ray: 1.0\nThis process:\n    Ray: 2.0\n")

    ray = fake_ray()
    ray.init = init
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(UserError, match=r"at auto: Version .* Ray: 1\.0 This .* Ray: 2\.0; install the same on both$"):
        connect(SETTINGS, "auto", tmp_path)


def node(**has):
    return {"Alive": True, "Resources": {name: float(amount) for name, amount in has.items()}}


def test_more_than_any_node_has_is_refused(monkeypatch, tmp_path):
    ray = fake_ray()
    ray.nodes = lambda: [node(CPU=8, memory=2**30), node(CPU=2, GPU=1), {"Alive": False, "Resources": {"GPU": 8.0}}]
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(UserError, match=r"a run asks for 4 CPU, 1 GPU .* there is: 8 CPU, 0 GPU; 2 CPU, 1 GPU$"):
        connect(ClusterParameters(4, 1, None, 3, SLURM), "auto", tmp_path)
    with pytest.raises(UserError, match=r"4 CPU, 0 GPU, 2\.14748e"):
        connect(ClusterParameters(4, 0, 2.0, 3, SLURM), "auto", tmp_path)
    assert connect(ClusterParameters(2, 1, None, 3, SLURM), "auto", tmp_path) is None


def test_a_run_takes_along_what_means_the_same_everywhere():
    variables = {"PATH": "/x", "HOME": "/y", "CUDA_VISIBLE_DEVICES": "3", "MLFLOW_TRACKING_URI": "u", "HF_TOKEN": "t"}
    assert carried({**variables, "OMP_NUM_THREADS": "1"}) == {
        "MLFLOW_TRACKING_URI": "u", "HF_TOKEN": "t", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    bucket = {"AWS_ENDPOINT_URL": "u", "GOOGLE_APPLICATION_CREDENTIALS": "/k", "AZURE_STORAGE_ACCOUNT_KEY": "k"}
    bucket[STUDY] = "mark"
    assert carried({**bucket, "XDG_CACHE_HOME": "/of/this/machine"}) == bucket


@pytest.fixture
def task(monkeypatch, tmp_path):
    """A task whose reference says what Ray does with it: None: not over; an error: raised; else its outcome."""
    said = []
    ray = fake_ray(wait=lambda references, timeout: (references if references[0].is_over else [], []))

    def get(reference):
        if isinstance(reference.outcome, Exception):
            raise reference.outcome
        return reference.outcome

    ray.get, ray.cancel = get, lambda reference, force: said.append(force)
    monkeypatch.setitem(sys.modules, "ray", ray)
    reference = SimpleNamespace(is_over=False, outcome=None)
    log = tmp_path / "run.log"
    run = Run(("grpo",), {"seed": 1, "data_root": str(tmp_path)}, None)
    premises = Premises(tmp_path, tmp_path, "", {})
    return Task(Attempt(run, premises, log, {}), reference, trace(log)), reference, said


def test_a_task_waits_until_a_worker_touched_its_log(task):
    one, reference, _ = task
    assert one.is_waiting and one.poll() is None
    one.attempt.log.touch()
    assert not one.is_waiting and one.poll() is None
    reference.is_over, reference.outcome = True, (3, None)
    assert (one.poll(), one.wait(), one.word) == (3, 3, None)


@pytest.fixture
def begun(task, monkeypatch):
    """A task that a worker of another machine has begun, and the folder of its run."""
    one = task[0]
    monkeypatch.setattr("gemma_alignment.study.ray_cluster.LOOK", 0.0)
    one.attempt.log.touch()
    (stage,) = one.attempt.run.stages
    folder = stage.directory(one.attempt.premises.data_root)
    folder.mkdir(parents=True)
    record = Record("grpo", 1, "", {}, {}, attempt=one.attempt.mark, host="node1")
    record.write(folder)
    return one, folder, record


def test_a_task_whose_node_was_lost_waits_for_another_one(begun):
    """Its first worker touched the log, and its record says running: for as long as no place is free."""
    one, folder, record = begun
    with hold(folder):
        assert not one.is_waiting
    assert one.is_waiting
    record.end("failed", "its machine node1 was lost").write(folder)  # by the next worker, as it begins
    assert not one.is_waiting
    dataclasses.replace(record, host="node2").write(folder)
    with hold(folder):
        assert not one.is_waiting
    dataclasses.replace(record, attempt="another").write(folder)  # of an earlier study: this one is yet to begin
    assert not one.is_waiting


def test_the_copy_of_a_bucket_passes_no_lock_on_and_the_lease_tells(begun):
    one, folder, _ = begun
    premises = dataclasses.replace(one.attempt.premises, address="s3://bucket/study")
    one.attempt = dataclasses.replace(one.attempt, premises=premises)
    lease = folder / LEASE
    lease.touch()
    assert not one.is_waiting
    os.utime(lease, (time.time() - STALE - 1,) * 2)
    assert one.is_waiting


def test_a_task_that_waits_for_a_new_place_is_not_ended_for_its_silence(begun, monkeypatch):
    one, folder, _ = begun
    stopped, clock = [], itertools.count(0, 5)
    monkeypatch.setattr(one, "signal", stopped.append)
    monkeypatch.setattr("gemma_alignment.study.heartbeat.time", SimpleNamespace(monotonic=lambda: next(clock)))
    child = Child(one.attempt.run, one.attempt.log, one)
    heartbeat = Heartbeat(SimpleNamespace(silence_report_s=20, silence_limit_s=60), one.attempt.premises.data_root)
    assert [sentence for _ in range(100) for sentence in heartbeat.look([child])] == []
    with hold(folder):  # another node has it now, and hangs
        said = [sentence for _ in range(20) for sentence in heartbeat.look([child])]
    assert stopped[:1] == [signal.SIGTERM] and len(said) == 2


def test_ray_starts_again_what_it_lost_and_not_what_failed(monkeypatch, tmp_path):
    asked = {}

    def remote(function):
        return SimpleNamespace(options=lambda **words: asked.update(words) or SimpleNamespace(remote=id))

    monkeypatch.setitem(sys.modules, "ray", fake_ray(remote=remote))
    (tmp_path / "pyproject.toml").touch()
    with alone(tmp_path / "data"):
        engine = Ray(Site(tmp_path, tmp_path / "data", "cpu", 1), SETTINGS)
        child = Child(Run(("grpo",), {"seed": 1}, None), tmp_path / "run.log")
        engine._submit(child, {})
    assert (asked["max_retries"], asked["retry_exceptions"]) == (SETTINGS.retries, False)
    assert child.process.is_waiting


def test_a_task_that_ray_gave_up_says_why(task):
    one, reference, said = task
    one.signal(signal.SIGTERM)
    one.signal(signal.SIGKILL)
    assert said == [False, True]
    reference.is_over, reference.outcome = True, RuntimeError("the node died too often")
    assert one.poll() == 1 and "the node died too often" in one.word
    one.signal(signal.SIGKILL)
    assert said == [False, True]


class TaskError(RuntimeError):
    """In the place of Ray's own."""


class Late(RuntimeError):
    """The same."""


def asked(monkeypatch, tmp_path, *answers):
    """What a study says of machines that answer so; one that cannot take a run is not asked."""
    (tmp_path / "pyproject.toml").touch()
    tasks = []

    def remote(function):
        def options(**words):
            tasks.append(words)
            return SimpleNamespace(remote=lambda probe: (probe, answers[len(tasks) - 1]))

        return SimpleNamespace(options=options)

    def get(reference, timeout):
        probe, answer = reference
        if isinstance(answer, Exception):
            raise answer
        return probe() if answer is None else answer

    ray = fake_ray(remote=remote, wait=lambda *words, **more: None, get=get)
    ray.exceptions = SimpleNamespace(RayError=RuntimeError, RayTaskError=TaskError, GetTimeoutError=Late)
    names = [{"NodeManagerHostname": f"node{n}", "NodeManagerAddress": f"10.0.0.{n}", "NodeID": n} for n in range(1, 9)]
    ray.nodes = lambda: [{**node(CPU=1), **names[n]} for n in range(len(answers))] + [{"Alive": True, "Resources": {}}]
    monkeypatch.setitem(sys.modules, "ray", ray)
    place = SimpleNamespace(NodeAffinitySchedulingStrategy=lambda node, soft: (node, soft))
    monkeypatch.setitem(sys.modules, "ray.util", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "ray.util.scheduling_strategies", place)
    with alone(tmp_path / "data"):
        engine = Ray(Site(tmp_path, tmp_path / "data", "cpu", 1), SETTINGS)
        monkeypatch.setattr(Premises, "check", lambda self: None)
        engine.check(Plan(("grpo",), (1,), {}))
    return tasks


def test_every_machine_that_has_room_is_asked_on_itself_beside_what_it_does(monkeypatch, tmp_path):
    tasks = asked(monkeypatch, tmp_path, None, None)
    assert [(task["num_cpus"], task["scheduling_strategy"]) for task in tasks] == [(0, (1, False)), (0, (2, False))]


def test_machines_that_cannot_answer_are_named_in_one_message(monkeypatch, tmp_path):
    broken = TaskError("ray::probe()\nModuleNotFoundError: No module named 'peft'\n")
    with pytest.raises(UserError) as error:
        asked(monkeypatch, tmp_path, (1, "node1: no"), Late(), broken, RuntimeError("the node died"), None)
    assert str(error.value).splitlines()[1:] == [
        "  node1: no",
        "  node2 (10.0.0.2): it did not answer in 300 seconds",
        "  node3 (10.0.0.3): ModuleNotFoundError: No module named 'peft'; install the same packages there",
        "  node4 (10.0.0.4): the node died",
    ]


@pytest.fixture
def nodes(monkeypatch):
    """A head without a place for runs and two nodes of one core each; what the study's runs see is set before."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray.cluster_utils import Cluster

    patient = {"RAY_raylet_start_wait_time_s": "400", "RAY_enable_worker_prestart": "0", "RAY_USAGE_STATS_ENABLED": "0"}
    for name, value in {"SMALL_HANG": "grpo:1", "SMALL_HANG_S": "900", **patient}.items():
        monkeypatch.setenv(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    workers = [cluster.add_node(num_cpus=1) for _ in range(2)]
    yield SimpleNamespace(cluster=cluster, workers=workers, address=cluster.address)
    cluster.shutdown()


def bytes_of(project):
    names = ("history.jsonl", "responses.jsonl", "samples.jsonl")
    return {
        f"{method}/{name}": (project.data / f"07_model_output/{method}/seed=1/{name}").read_bytes()
        for method in ("ppo", "grpo")
        for name in names
    }


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.cli
@pytest.mark.pipeline
@pytest.mark.slow
def test_a_study_that_loses_a_node_leaves_what_a_study_here_does(project, nodes, monkeypatch):
    project.run("data_processing", "sft", "reward_model")
    words = ("--env=test", "--seeds=1", "--engine=ray", f"--address={nodes.address}")
    process = project.start("kedro", "study", *words)
    history = project.data / "07_model_output/grpo/seed=1/history.jsonl"
    deadline = time.monotonic() + 900
    while not (history.exists() and history.read_text().count("\n") == 2):
        assert time.monotonic() < deadline and process.poll() is None, process.communicate(timeout=60)
        time.sleep(0.5)
    first = project.record("grpo/seed=1")
    raylet = parent(parent(first.pid))
    (lost,) = [one for one in nodes.workers if one.all_processes["raylet"][0].process.pid == raylet]
    nodes.cluster.remove_node(lost, allow_graceful=False)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    assert "finished: 3 processes done, 0 failed" in said and "MLflow's store is a file" in said
    record = project.record("grpo/seed=1")
    assert (record.status, record.mlflow_run_id) == ("finished", first.mlflow_run_id)
    assert record.pid != first.pid
    assert set(project.states().values()) == {"FINISHED"}
    points = project.client.get_metric_history(record.mlflow_run_id, "reward/score_mean")
    assert [point.step for point in points] == [0, 1, 2, 3]  # none was made or sent twice
    on_ray = bytes_of(project)
    monkeypatch.delenv("SMALL_HANG")
    for method in ("ppo", "grpo"):
        project.run(method, seed=1, overwrite=True)
    assert bytes_of(project) == on_ray
