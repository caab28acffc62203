"""The lines of a run, and their way to MLflow."""

import hashlib
import json
import logging
import math
import os
import threading
import time
from types import SimpleNamespace

import pytest
from kedro.io import DatasetError

from gemma_alignment.datasets.local_store import Point
from gemma_alignment.datasets.metric_writer import MetricWriter, synchronize
from gemma_alignment.datasets.run_log import RunLog, RunLogDataset
from gemma_alignment.errors import UserError
from gemma_alignment.schemas import UpdateRecord


def record(iteration, **metrics):
    return UpdateRecord(iteration, metrics or {"b/x": 0.1, "a/y": 2}, {"budget/seconds": 0.5}, ())


def lines(path):
    return path.read_text(encoding="utf-8").splitlines()


def test_a_record_is_on_disk_at_once_as_one_sorted_compact_line(tmp_path):
    log = RunLog(tmp_path)
    log.append(UpdateRecord(0, {"b/x": 0.1, "a/y": 2, "c/z": math.nan}, {"t": 1.5}, ({"response": "é"},)))
    assert lines(tmp_path / "history.jsonl") == ['{"a/y":2,"b/x":0.1,"c/z":null,"iteration":0}']
    assert lines(tmp_path / "samples.jsonl") == ['{"iteration":0,"response":"é"}']
    (timing,) = [json.loads(line) for line in lines(tmp_path / "timing.jsonl")]
    assert timing["t"] == 1.5 and abs(timing["timestamp"] / 1000 - time.time()) < 60


def test_how_many_iterations_are_planned_is_kept_beside_the_clock_and_not_sent(tmp_path):
    log = RunLog(tmp_path)
    log.append(UpdateRecord(5, {"sft/loss": 1.5}, {"planned": 284.0}))
    assert log.rows("timing")[0]["planned"] == 284
    assert [point.key for point in log.points()] == ["sft/loss"]


def test_floats_come_back_exactly(tmp_path):
    log = RunLog(tmp_path)
    values = {"x": 0.1 + 0.2, "y": 1e-300, "z": 2 / 3}
    log.append(UpdateRecord(0, values, {}))
    assert log.rows("history") == [{"iteration": 0, **values}]


def test_a_run_from_the_start_begins_with_empty_files(tmp_path):
    old = RunLog(tmp_path)
    for iteration in range(3):
        old.append(UpdateRecord(iteration, {"x": 1.0}, {}, ({"response": "old"},)))
    new = RunLog(tmp_path)
    new.append(record(0))
    assert [row["iteration"] for row in new.rows("history")] == [0]
    assert new.rows("samples") == []
    assert len(lines(tmp_path / "timing.jsonl")) == 1


def test_a_later_node_of_another_process_goes_on_where_the_lines_end(tmp_path):
    first = RunLog(tmp_path)
    for iteration in range(3):
        first.append(record(iteration))
    (tmp_path / "history.jsonl").open("a").write('{"iteration": 3, "half a li')
    second = RunLog(tmp_path)
    second.append(record(3))
    assert [row["iteration"] for row in second.rows("history")] == [0, 1, 2, 3]


def test_a_file_that_a_node_saved_again_in_between_is_continued(tmp_path):
    log = RunLog(tmp_path)
    log.append(record(0))
    replacement = tmp_path / "other"
    replacement.write_text('{"iteration":0}\n')
    replacement.replace(tmp_path / "history.jsonl")
    log.append(record(1))
    assert [row["iteration"] for row in log.rows("history")] == [0, 1]


def test_a_line_that_is_being_written_is_not_read(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"iteration":0}\n{"iteration":1')
    assert RunLog(tmp_path).rows("history") == [{"iteration": 0}]
    assert RunLog(tmp_path).rows("samples") == []


def logged(path, count):
    log = RunLog(path)
    for iteration in range(count):
        append(log, iteration)
    return log


def append(log, iteration):
    log.append(UpdateRecord(iteration, {"x": iteration / 3}, {"t": 1.0}, ({"response": f"é{iteration}"},)))


def test_a_run_goes_on_from_a_position_to_the_same_bytes_and_positions(tmp_path):
    whole = logged(tmp_path / "whole", 4)
    lost = logged(tmp_path / "cut", 2)
    position = lost.position()
    append(lost, 2)
    with lost.path("history").open("a") as file:
        file.write('{"iteration":3,"half a li')
    log = RunLog(tmp_path / "cut")
    log.resume(position)
    assert len(log.rows("timing")) == 3  # until the next record, what was lost can still be read
    append(log, 2)
    append(log, 3)
    for kind in ("history", "samples"):
        assert log.path(kind).read_bytes() == whole.path(kind).read_bytes()
        assert log.position()[kind] == whole.position()[kind]
    assert [row["iteration"] for row in log.rows("timing")] == [0, 1, 2, 3]


def test_lines_that_are_lost_are_no_start(tmp_path):
    log = logged(tmp_path, 2)
    position = log.position()
    os.truncate(log.path("history"), position["history"].bytes - 1)
    with pytest.raises(UserError, match=r"history\.jsonl is shorter than when the checkpoint was.*overwrite=true"):
        RunLog(tmp_path).resume(position)


@pytest.mark.parametrize("kind", ["history", "timing", "samples"])
def test_a_digit_that_a_disk_has_changed_is_no_start_though_the_line_is_still_one(tmp_path, kind):
    log = logged(tmp_path, 2)
    position = log.position()
    append(log, 2)
    content = log.path(kind).read_bytes()
    changed = content.replace(b'"iteration":1', b'"iteration":3')
    log.path(kind).write_bytes(changed)
    assert [row["iteration"] for row in log.rows(kind)] == [0, 3, 2]
    with pytest.raises(UserError, match=rf"{kind}\.jsonl is not what it was .* first {position[kind].bytes} bytes"):
        RunLog(tmp_path).resume(position)
    assert log.path(kind).read_bytes() == changed
    log.path(kind).write_bytes(content.replace(b'"iteration":2', b'"iteration":3'))  # done again, and better
    RunLog(tmp_path).resume(position)


@pytest.mark.parametrize("rest", [b'{"iteration":1,"response":"\xc3', b"\0\0\0\n", b'{"iteration":1,"resp\n'])
def test_a_run_begins_over_whatever_a_kill_or_a_loss_of_power_left(tmp_path, rest):
    """Half a character, zeros in the place of a line that the disk never got, half a line with its end."""
    whole = logged(tmp_path / "whole", 2)
    left = logged(tmp_path / "left", 1)
    for kind in ("history", "samples"):
        left.path(kind).write_bytes(left.path(kind).read_bytes() + rest)
    again = logged(tmp_path / "left", 2)
    for kind in ("history", "samples"):
        assert again.path(kind).read_bytes() == whole.path(kind).read_bytes()


def test_half_a_character_at_the_end_is_not_read_and_a_damaged_line_is_named(tmp_path):
    log = logged(tmp_path, 2)
    with log.path("samples").open("ab") as file:
        file.write(b'{"iteration":2,"response":"\xc3')
    assert [row["iteration"] for row in log.rows("samples")] == [0, 1]
    content = bytearray(log.path("samples").read_bytes())
    content[1] ^= 0x80
    log.path("samples").write_bytes(content)
    with pytest.raises(UserError, match=r"Line 1 of .*samples\.jsonl is damaged: .*overwrite=true"):
        log.rows("samples")


def test_a_position_counts_bytes_of_files_that_sync_has_made(tmp_path):
    log = RunLog(tmp_path)
    assert [mark.bytes for mark in log.position().values()] == [0, 0, 0]
    log.sync()
    log.append(UpdateRecord(0, {}, {}, ({"response": "é"},)))
    line = '{"iteration":0,"response":"é"}\n'.encode()
    assert log.position()["samples"] == (len(line), hashlib.sha256(line).hexdigest())
    assert RunLog(tmp_path).position() == log.position()


def test_the_dataset_gives_one_log_and_refuses_to_save(tmp_path):
    dataset = RunLogDataset(str(tmp_path / "run"))
    assert dataset.exists()
    assert dataset.load() is dataset.load()
    with pytest.raises(DatasetError, match="append records to it"):
        dataset.save([])


class Server:
    """Stands in for a client of MLflow; ``down`` makes every call fail."""

    tracking_uri = "http://127.0.0.1:1"

    def __init__(self):
        self.points = []
        self.down = False
        self.calls = 0
        self.called = threading.Event()

    def log_batch(self, run_id, metrics):
        self.calls += 1
        self.called.set()
        if self.down:
            raise ConnectionError("refused")
        assert len(metrics) <= 1000
        self.points += [Point(m.key, m.value, m.timestamp, m.step) for m in metrics]

    def get_metric_history(self, run_id, key):
        if self.down:
            raise ConnectionError("refused")
        return [point for point in self.points if point.key == key]

    def get_run(self, run_id):
        if self.down:
            raise ConnectionError("refused")
        return SimpleNamespace(data=SimpleNamespace(metrics={point.key: 0.0 for point in self.points}))


def points(count, key="x"):
    return [Point(key, float(step), 1000 + step, step) for step in range(count)]


def test_points_are_sent_while_the_run_goes_on():
    server = Server()
    writer = MetricWriter(server, "run", interval=0.01)
    writer.add(points(3))
    assert server.called.wait(60)  # the first one imports mlflow
    writer.close(points(3))
    assert server.points == points(3)


def test_an_outage_costs_one_warning_and_no_point(caplog):
    server = Server()
    server.down = True
    writer = MetricWriter(server, "run", interval=0.01)
    with caplog.at_level(logging.WARNING):
        writer.add(points(2))
        while server.calls < 3:
            time.sleep(0.01)
        server.down = False
        writer.add(points(4)[2:])
        writer.close(points(4))
    assert sorted(server.points) == points(4)
    assert len([r for r in caplog.records if "training goes on" in r.getMessage()]) == 1


def test_a_server_that_stays_away_is_no_error(caplog):
    server = Server()
    server.down = True
    writer = MetricWriter(server, "run", interval=60)
    writer.add(points(2))
    writer.close(points(2))
    assert server.points == []
    assert len(caplog.records) == 1


def test_only_what_is_missing_is_sent_with_the_time_it_was_recorded():
    server = Server()
    server.points = [points(5)[1], points(5)[3]]
    assert synchronize(server, "run", points(5)) == 3
    assert sorted(server.points) == points(5)
    assert synchronize(server, "run", points(5)) == 0


def test_a_continued_run_is_read_back_and_what_it_holds_is_not_sent_again():
    server = Server()
    server.points = points(3)
    again = [point._replace(timestamp=9000 + point.step) for point in points(5)]
    writer = MetricWriter(server, "run", interval=0.01, continued=True)
    writer.add(again[1:])
    assert server.called.wait(60)  # the first one imports mlflow
    writer.close(again)
    assert server.points == points(3) + again[3:]


def test_a_continued_run_that_cannot_be_read_back_yet_is_sent_nothing_twice(caplog):
    server = Server()
    server.points = points(3)
    server.down = True
    writer = MetricWriter(server, "run", interval=0.01, continued=True)
    with caplog.at_level(logging.WARNING):
        writer.add(points(5))
        deadline = time.monotonic() + 60
        while not caplog.records and time.monotonic() < deadline:
            time.sleep(0.01)
        server.down = False
        writer.close(points(5))
    assert server.points == points(5)
    assert len(caplog.records) == 1


def test_a_continued_log_sends_what_an_attempt_that_was_shot_did_not(tmp_path):
    logged(tmp_path, 2)
    server = Server()
    log = RunLog(tmp_path)
    log.attach(server, "run", continued=True)
    log.close()
    assert sorted((point.key, point.step) for point in server.points) == [("t", 0), ("t", 1), ("x", 0), ("x", 1)]


def test_a_finished_log_that_is_resumed_fills_a_run_that_holds_nothing(tmp_path):
    """No line is added, as when the store lost the run of a training that was through."""
    position = logged(tmp_path, 2).position()
    server = Server()
    log = RunLog(tmp_path)
    log.resume(position)
    log.attach(server, "run")
    log.close()
    assert len(server.points) == 4


def test_many_points_go_in_parts_that_mlflow_takes():
    server = Server()
    synchronize(server, "run", points(2500))
    assert len(server.points) == 2500
    assert server.calls == 3


def test_closing_a_log_sends_what_the_files_hold(tmp_path):
    server = Server()
    log = RunLog(tmp_path)
    log.attach(server, "run")
    log.append(UpdateRecord(0, {"a": 1.0, "bad": math.inf}, {"t": 2.0}))
    log.append(UpdateRecord(1, {"a": 1.5}, {"t": 3.0}))
    log.close()
    sent = {(p.key, p.step): p.value for p in server.points}
    assert math.isnan(sent.pop(("bad", 0)))
    assert sent == {("a", 0): 1.0, ("t", 0): 2.0, ("a", 1): 1.5, ("t", 1): 3.0}
    assert {p.timestamp for p in server.points} == {row["timestamp"] for row in log.rows("timing")}
    log.close()  # once is enough, twice is harmless


def test_a_log_that_nobody_wrote_to_sends_nothing_of_an_earlier_run(tmp_path):
    old = RunLog(tmp_path)
    old.append(record(0))
    server = Server()
    log = RunLog(tmp_path)
    log.attach(server, "run")
    log.close()
    assert server.points == []


def test_mlflow_stores_a_point_that_comes_twice_once(tmp_path, empty_store):
    import shutil

    from mlflow import MlflowClient

    shutil.copy(empty_store, tmp_path / "mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.create_run("0").info.run_id
    log = RunLog(tmp_path)
    log.attach(client, run)
    for iteration in range(3):
        log.append(record(iteration, **{"reward/score_mean": iteration / 3}))
    log.close()
    synchronize(client, run, log.points())
    stored = client.get_metric_history(run, "reward/score_mean")
    assert [(point.step, point.value) for point in stored] == [(0, 0.0), (1, 1 / 3), (2, 2 / 3)]
