"""What goes straight into MLflow's file is, row for row, what its client would have written."""

import math
import shutil
import sqlite3
import sys

import pytest
from mlflow import MlflowClient
from mlflow.entities import Metric

from gemma_alignment.datasets import local_store
from gemma_alignment.datasets.local_store import LocalStore, Point
from gemma_alignment.datasets.metric_writer import MetricWriter

BATCHES = [
    [Point("a", 0.1, 1000, 0), Point("a", 0.1, 1000, 0), Point("b", math.nan, 1000, 0), Point("a", 0.2, 1100, 1)],
    [Point("a", -1e-300, 900, 5), Point("b", math.inf, 950, 5), Point("c", -math.inf, 950, 0), Point("é/x", 7, 1, 2)],
    [Point("a", 0.3, 800, 4), Point("b", 1.0, 950, 5), Point("c", 2.0, 951, 0), Point("b", math.nan, 1200, 7)],
    [Point("a", 0.1, 1000, 0), Point("a", 0.4, 900, 5), Point("b", -1.0, 1200, 7), Point("é/x", 6.5, 1, 2)],
]
"""Points that come twice, NaN and infinities, later batches that are older, ties in step and time."""
EVERY = "SELECT key, value, timestamp, step, is_nan FROM metrics WHERE run_uuid = ?"
LATEST = "SELECT key, value, timestamp, step, is_nan FROM latest_metrics WHERE run_uuid = ?"


@pytest.fixture
def opened(tmp_path, empty_store):
    """A store with one run, a client of it, the id of the run."""
    file = shutil.copy(empty_store, tmp_path / "it's #1 of é.db")
    client = MlflowClient(f"sqlite:///{file}")
    store = LocalStore.of(client.tracking_uri)
    assert store.file == file
    yield store, client, client.create_run("0").info.run_id
    store.close()


def sent(client, run_id, points):
    """By a writer, which is closed."""
    writer = MetricWriter(client, run_id)
    writer.add(points)
    writer.close([])


def rows(store, run_id):
    with sqlite3.connect(store.file) as database:
        found = [sorted(database.execute(query, [run_id])) for query in (EVERY, LATEST)]
    database.close()
    return found


def test_every_row_is_the_one_that_the_client_writes(opened):
    store, client, run_id = opened
    other = client.create_run("0").info.run_id
    for batch in BATCHES:
        client.log_batch(other, metrics=[Metric(p.key, p.value, p.timestamp, p.step) for p in batch])
        assert store.insert(run_id, batch)
        assert rows(store, run_id) == rows(store, other)
    assert len(rows(store, run_id)[0]) == 14
    direct, by_client = (client.get_run(one).data.metrics for one in (run_id, other))
    assert direct == pytest.approx(by_client, nan_ok=True) and len(direct) == 4
    assert direct["a"] == 0.4 and client.get_metric_history(run_id, "c")[0].value == -sys.float_info.max


def test_a_local_file_gets_the_points_without_the_client(opened, monkeypatch):
    _, client, run_id = opened
    monkeypatch.setattr(client, "log_batch", None)
    sent(client, run_id, BATCHES[0][:1] + BATCHES[0][2:])
    assert client.get_run(run_id).data.metrics["a"] == 0.2


def test_a_store_of_another_revision_is_left_to_the_client(opened, monkeypatch):
    """As after an upgrade of MLflow that migrates its tables: what they mean then, its client knows."""
    store, client, run_id = opened
    with sqlite3.connect(store.file) as database:
        database.execute("UPDATE alembic_version SET version_num = '0123456789ab'")
    database.close()
    assert not store.insert(run_id, BATCHES[0])
    assert rows(store, run_id)[0] == []
    taken = []
    monkeypatch.setattr(client, "log_batch", lambda run_id, metrics: taken.extend(m.key for m in metrics))
    sent(client, run_id, BATCHES[0])
    assert taken == ["a", "b", "a"]


def test_a_store_that_others_hold_takes_all_points_or_none(opened, monkeypatch):
    store, _, run_id = opened
    monkeypatch.setattr(local_store, "WAIT", 0.05)
    holder = sqlite3.connect(store.file, isolation_level=None)
    holder.execute("BEGIN IMMEDIATE")
    with pytest.raises(sqlite3.OperationalError, match="database is locked"):
        store.insert(run_id, BATCHES[0])
    holder.execute("COMMIT")
    holder.close()
    assert rows(store, run_id) == [[], []]
    monkeypatch.setattr(local_store, "LATEST", local_store.LATEST.replace("(excluded.step", "(nowhere"))
    with pytest.raises(sqlite3.OperationalError, match="nowhere"):
        store.insert(run_id, BATCHES[0])
    assert rows(store, run_id) == [[], []]
    monkeypatch.undo()
    assert store.insert(run_id, BATCHES[0]) and len(rows(store, run_id)[0]) == 3


def test_a_run_that_was_deleted_and_a_store_that_is_gone_take_nothing(opened):
    store, client, run_id = opened
    for missing in (run_id, "0" * 32):
        if missing == run_id:
            client.delete_run(run_id)
        with pytest.raises(LookupError, match=f"no run {missing}"):
            store.insert(missing, BATCHES[0])
    assert rows(store, run_id)[0] == []
    gone = LocalStore(store.file.with_name("gone.db"))
    with pytest.raises(sqlite3.OperationalError, match="unable to open"):
        gone.insert(run_id, BATCHES[0])
    assert not gone.file.exists()


@pytest.mark.parametrize(
    "uri",
    ["http://127.0.0.1:5000", "postgresql://user:secret@db/mlflow", "sqlite://", "sqlite:///:memory:", "databricks",
     "sqlite:///store.db?timeout=5", "sqlite:///a%20b.db", "file:///tmp/mlruns", "sqlite+pysqlcipher://:x@/store.db"],
)  # fmt: skip
def test_any_other_address_is_the_clients(uri):
    assert LocalStore.of(uri) is None


def test_a_relative_file_lies_where_the_client_finds_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert LocalStore.of("sqlite:///store.db").file == tmp_path / "store.db"
    assert LocalStore.of(f"sqlite:///{tmp_path}/a b.db").file == tmp_path / "a b.db"
