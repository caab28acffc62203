"""``kedro study --engine ray`` on a bucket: nodes that share no folder, and one that is lost."""

import json
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gemma_alignment.fingerprints import Record
from gemma_alignment.storage.address import working_folder

pytestmark = [pytest.mark.cli, pytest.mark.pipeline, pytest.mark.slow]
PATIENT = {"RAY_raylet_start_wait_time_s": "400", "RAY_enable_worker_prestart": "0", "RAY_USAGE_STATS_ENABLED": "0"}


@pytest.fixture
def nodes(monkeypatch, tmp_path):
    """A head without a place for runs and two nodes of one core each, every one with a cache of its own."""
    pytest.importorskip("ray", reason="the extra ray is not installed")
    from ray.cluster_utils import Cluster

    for name, value in {"SMALL_HANG": "grpo:1", "SMALL_HANG_S": "900", **PATIENT}.items():
        monkeypatch.setenv(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    caches = [tmp_path / f"cache-{i}" for i in range(2)]
    workers = [cluster.add_node(num_cpus=1, env_vars={"XDG_CACHE_HOME": str(cache)}) for cache in caches]
    yield SimpleNamespace(cluster=cluster, workers=workers, address=cluster.address, caches=caches)
    cluster.shutdown()


def bytes_of(root):
    names = ("history.jsonl", "responses.jsonl", "samples.jsonl", "comparison.json")
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in root.rglob("*") if path.name in names}


def parent(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_study_that_loses_a_node_goes_on_on_one_that_knows_nothing_of_it(project, nodes, monkeypatch, tmp_path):
    place, store = f"local://{tmp_path}/store/a", tmp_path / "store/a"
    words = ("--env=test", "--seeds=1", "--engine=ray", f"--address={nodes.address}", f"--params=data_root={place}")
    process = project.start("kedro", "study", *words, XDG_CACHE_HOME=str(tmp_path / "driver"))
    checkpoint = store / "07_model_output/grpo/seed=1/checkpoints/iteration=000001/SHA256SUMS"
    deadline = time.monotonic() + 900
    while not checkpoint.exists():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate(timeout=60)
        time.sleep(0.5)
    first = Record.read(store / "07_model_output/grpo/seed=1")
    lease = json.loads((store / "07_model_output/grpo/seed=1/lease.json").read_text())
    raylet = parent(parent(first.pid))
    (lost,) = [one for one in nodes.workers if one.all_processes["raylet"][0].process.pid == raylet]
    nodes.cluster.remove_node(lost, allow_graceful=False)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0 and "finished: 4 processes done, 0 failed" in said, said
    record = Record.read(store / "07_model_output/grpo/seed=1")
    assert (record.status, record.mlflow_run_id) == ("finished", first.mlflow_run_id)
    assert record.pid != first.pid == lease["pid"]
    assert set(project.states().values()) == {"FINISHED"}
    points = project.client.get_metric_history(record.mlflow_run_id, "reward/score_mean")
    assert [point.step for point in points] == [0, 1, 2, 3]  # none was made or sent twice
    assert all((cache / "gemma-alignment").is_dir() for cache in nodes.caches)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "driver"))
    monkeypatch.delenv("SMALL_HANG")
    project.run("data_processing", "sft", "reward_model")
    for method in ("ppo", "grpo"):
        project.run(method, seed=1)
    project.run("evaluation", "reporting")
    assert bytes_of(store) == bytes_of(working_folder(place)) == bytes_of(project.data)
