"""Runs and studies whose data are in a bucket: the same files, from whatever machine, and nothing lost."""

import json
import signal
import time
from pathlib import Path

import pytest
from s3 import served

from gemma_alignment.errors import RunInterrupted, UserError
from gemma_alignment.fingerprints import Record
from gemma_alignment.hooks import working_copy
from gemma_alignment.storage import lease as leases
from gemma_alignment.storage import patience
from gemma_alignment.storage.address import working_folder
from gemma_alignment.storage.bucket import Away, Bucket, Unreachable
from gemma_alignment.storage.lease import STUDY, Lease, Lost

pytestmark = pytest.mark.pipeline
ARM = "07_model_output/grpo/seed=42"
PREPARED = ("data_processing", "sft", "reward_model")


@pytest.fixture
def place(project, tmp_path, monkeypatch):
    """The address of an empty bucket: a folder behind another protocol, which every machine of the test sees."""
    monkeypatch.setattr(leases, "SETTLED", 0.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "first"))
    return f"local://{tmp_path}/store/study"


@pytest.fixture
def move(place, tmp_path, monkeypatch):
    """``move(name)``: go on on another machine, with a cache of its own; the working folder there."""

    def to(name):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return working_folder(place)

    return to


def made(root):
    """What a study leaves that does not depend on when and where it was made."""
    lines = ("history.jsonl", "responses.jsonl", "samples.jsonl", "judgements.jsonl")
    files = (path for path in Path(root).rglob("*") if path.name in (*lines, "adapter_config.json", "comparison.json"))
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def whole(project, **params):
    """A study session by session, in a folder if no parameter says something else."""
    project.run(*PREPARED, **params)
    for arm in ("ppo", "grpo"):
        project.run(arm, seed=1, **params)
    project.run("evaluation", "reporting", **params)


def objects(place):
    return Path(place.removeprefix("local://"))


def test_a_session_in_a_bucket_leaves_what_one_in_a_folder_does(project, place, move):
    whole(project)
    whole(project, data_root=place)
    expected = made(project.data)
    assert len(expected) >= 14
    assert made(objects(place)) == made(working_folder(place)) == expected
    assert not list(objects(place).rglob("lease.json")) and not list(objects(place).rglob(".*"))
    assert {run.info.status for run in project.runs()} == {"FINISHED"}
    assert Record.read(objects(place) / "07_model_output/grpo/seed=1").status == "finished"
    move("second")
    project.run("evaluation", "reporting", data_root=place)  # finds all it needs in the bucket
    assert made(objects(place)) == expected


def test_each_stage_may_be_made_by_another_machine(project, place, move):
    for number, stage in enumerate((*PREPARED, "grpo", "ppo", "evaluation", "reporting")):
        move(f"machine-{number}")
        project.run(stage, data_root=place, seed=1)
    whole(project)
    assert made(objects(place)) == made(project.data)


def test_inputs_that_are_not_there_are_named_with_the_address(project, place):
    with pytest.raises(UserError, match=f"(?s)inputs are missing.*--pipeline=sft.*data_root={place}"):
        project.run("grpo", data_root=place)
    assert project.runs() == [] and not list(objects(place).rglob("*.json"))


def test_a_run_that_was_shot_goes_on_on_another_machine_to_the_same_bytes(project, place, move, tmp_path):
    project.run(*PREPARED, data_root=place)
    process = begun(project, place)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = Record.read(objects(place) / ARM)
    assert first.status == "running"
    _as_of_another_host(place)
    move("second")
    with pytest.raises(UserError, match=r"grpo-seed42 is being made in .* already: .*counts as over, and at once when"):
        project.run("grpo", data_root=place, resume=True)
    (objects(place) / ARM / "lease.json").unlink()
    project.run("grpo", data_root=place, resume=True)
    record = Record.read(objects(place) / ARM)
    assert (record.status, record.mlflow_run_id) == ("finished", first.mlflow_run_id)
    points = project.client.get_metric_history(record.mlflow_run_id, "reward/score_mean")
    assert [point.step for point in points] == [0, 1, 2, 3]
    project.run(*PREPARED, "grpo")
    assert made(objects(place)) == made(project.data)


def begun(project, place):
    """A process that trains the arm and waits after its second checkpoint, which is in the bucket."""
    process = project.start("kedro", "run", "--pipeline=grpo", "--env=test", "--params", f"data_root={place}",
                            SMALL_HANG="grpo:42", SMALL_HANG_S="900")  # fmt: skip
    deadline = time.monotonic() + 300
    while not (objects(place) / ARM / "checkpoints" / "iteration=000001" / "SHA256SUMS").exists():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    return process


def test_a_run_that_is_asked_to_stop_says_so_in_the_bucket_and_lets_go(project, place, move):
    project.run(*PREPARED, data_root=place)
    process = begun(project, place)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert Record.read(objects(place) / ARM).status == "killed"
    assert not (objects(place) / ARM / "lease.json").exists()
    move("second")
    project.run("grpo", data_root=place, resume=True)
    assert Record.read(objects(place) / ARM).status == "finished"


def _as_of_another_host(place):
    """Let the lease and record of the shot run be of a machine that cannot be asked."""
    for name in ("lease.json", "run.json"):
        path = objects(place) / ARM / name
        path.write_text(json.dumps({**json.loads(path.read_text()), "host": "elsewhere"}))


def test_the_same_machine_goes_on_at_once_with_what_it_has_beyond_the_bucket(project, place, monkeypatch):
    project.run(*PREPARED, data_root=place)
    with monkeypatch.context() as patch:
        patch.setenv("SMALL_FAIL", "grpo:42")
        patch.setattr(working_copy.WorkingCopy, "push", lambda self: None)  # as if it had been shot before that
        with pytest.raises(ArithmeticError):
            project.run("grpo", data_root=place)
    assert not (objects(place) / ARM / "checkpoints").exists()
    project.run("grpo", data_root=place, resume=True)
    assert (objects(place) / ARM / "history.jsonl").read_text().count("\n") == 4
    run = project.client.get_run(Record.read(objects(place) / ARM).mlflow_run_id)
    assert (run.data.tags["resume"], run.data.tags["data_root"]) == ("true", place)


def test_storage_without_rights_is_refused_before_anything_begins(project, place, monkeypatch):
    def refuse(self, name, content):
        raise Unreachable("no right to write")

    monkeypatch.setattr(Bucket, "write", refuse)
    with pytest.raises(UserError, match="no right to write"):
        project.run("data_processing", data_root=place)
    assert project.runs() == [] and not objects(place).exists()


def test_a_bucket_that_is_away_when_a_run_of_a_study_begins_is_waited_for(project, place, monkeypatch):
    verbs = {name: getattr(Bucket, name) for name in ("write", "create", "listing", "send")}
    away = set(verbs)

    def once(name):
        def call(*words):
            if name in away:
                away.remove(name)
                raise Away("it is away.")
            return verbs[name](*words)

        return call

    for name in verbs:
        monkeypatch.setattr(Bucket, name, once(name))
    with pytest.raises(Away):
        project.run("data_processing", data_root=place)  # by itself: who typed it is told at once
    assert project.runs() == [] and away == {"create", "listing", "send"}
    away.add("write")
    monkeypatch.setenv(STUDY, "mark")
    left = working_folder(place) / "07_model_output" / "data_processing" / "left.jsonl"  # to be brought there
    left.parent.mkdir(parents=True, exist_ok=True), left.write_text("1\n")
    project.run("data_processing", data_root=place)
    assert not away and Record.read(objects(place) / "07_model_output" / "data_processing").status == "finished"


def test_a_bucket_that_goes_away_is_survived_until_the_end(project, place, monkeypatch, caplog):
    project.run(*PREPARED, data_root=place)
    monkeypatch.setattr(patience, "PATIENCE", 0.0)
    real = Bucket.send
    monkeypatch.setattr(Bucket, "send", lambda *words: (_ for _ in ()).throw(Unreachable("away.")))
    with pytest.raises(UserError, match=r"away\.\nAll that was made is in .* brings it to the bucket"):
        project.run("grpo", data_root=place)
    assert caplog.text.count("away. The run goes on") == 1
    monkeypatch.setattr(Bucket, "send", real)
    code, said = project.command("kedro", "study", "--env=test", "--methods=grpo", "--seeds=42", "--resume",
                                 "--params", f"data_root={place}")  # fmt: skip
    assert code == 0 and "reused" in said, said
    assert Record.read(objects(place) / ARM).status == "finished"


def test_a_run_whose_stage_was_taken_over_ends_and_brings_nothing_more(project, place, monkeypatch):
    project.run(*PREPARED, data_root=place)
    real = working_copy.WorkingCopy.push
    calls = []

    def taken(self):
        calls.append(self)
        if len(calls) == 3:
            (objects(place) / ARM / "lease.json").write_text('{"pid": 1, "host": "elsewhere"}')
        real(self)

    monkeypatch.setattr(working_copy.WorkingCopy, "push", taken)
    with pytest.raises(Lost, match="process 1 on elsewhere has taken over"):
        project.run("grpo", data_root=place)
    assert Record.read(objects(place) / ARM).status == "running"
    assert (objects(place) / ARM / "history.jsonl").read_text().count("\n") == 1
    assert json.loads((objects(place) / ARM / "lease.json").read_text())["host"] == "elsewhere"


def test_a_run_that_was_taken_over_ends_at_the_next_beat_though_it_brings_nothing(project, place, monkeypatch):
    """As an evaluation that asks its judge for hours, beside the one that does it now."""
    from small_project import nodes

    stage, seen = "07_model_output/data_processing", []

    def files():
        return {path: path.read_bytes() for path in objects(place).rglob("*") if path.is_file()}

    def long(rows):
        (objects(place) / stage / "lease.json").write_text('{"pid": 1, "host": "elsewhere"}')
        (working_folder(place) / stage / "later.jsonl").write_text("1\n")
        seen.append(files())
        time.sleep(60)

    monkeypatch.setattr(leases, "BEAT", 0.1)
    monkeypatch.setattr(nodes, "split", long)
    begin = time.monotonic()
    with pytest.raises(RunInterrupted, match=r"^stopped: .* process 1 on elsewhere has taken over") as error:
        project.run("data_processing", data_root=place)
    assert time.monotonic() - begin < 50 and error.value.code == 1
    record = Record.read(working_folder(place) / stage)
    assert record.status == "killed" and "process 1 on elsewhere has taken over" in record.error
    assert {run.info.status for run in project.runs()} == {"KILLED"}
    assert [files()] == seen  # nothing was brought there any more


def test_a_reply_of_a_judge_is_in_the_bucket_with_the_next_beat(project, place, move, monkeypatch):
    from small_project import nodes

    project.run(*PREPARED, "ppo", "grpo", data_root=place)
    real, cache = nodes.judge, "07_model_output/judge_cache.jsonl"

    def judge(responses, run_cards, connection, evaluation, settings, *finished):
        for number in (1, 2):
            with connection._cache_path.open("a") as file:
                file.write(f"reply {number}\n")
            deadline = time.monotonic() + 60
            while not (objects(place) / cache).exists() or (objects(place) / cache).read_text().count("reply") < number:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        return real(responses, run_cards, connection, evaluation, settings, *finished)

    with monkeypatch.context() as patch:
        patch.setattr(leases, "BEAT", 0.1)
        patch.setattr(nodes, "judge", judge)
        project.run("evaluation", data_root=place)
    there = move("second")
    project.run("evaluation", data_root=place)
    assert (there / cache).read_text() == "reply 1\nreply 2\n"


@pytest.mark.cli
def test_a_study_in_a_bucket(project, place, move):
    words = ("kedro", "study", "--env=test", "--seeds=1", f"--params=data_root={place}")
    code, said = project.command(*words)
    assert code == 0 and "finished: 4 processes done, 0 failed" in said and f"Bucket:    {place}" in said, said
    assert (objects(place) / "07_model_output/grpo/seed=1/run.log").stat().st_size > 0
    whole(project)
    assert made(objects(place)) == made(project.data)

    there = move("second")
    code, said = project.command("kedro", "study", "status", *words[2:])
    assert code == 0 and "7 finished" in said, said
    code, said = project.command(*words, "--dry-run", "--resume")
    assert code == 0 and "kedro run" not in said, said
    code, said = project.command(*words, "--resume")
    assert code == 0 and "0 processes done, 0 failed" in said, said
    assert made(there) == made(project.data)

    held = Lease.take(Bucket(place), "study.lock", {"host": "elsewhere", "pid": 7, "command": "kedro study"}, "")
    code, said = project.command(*words, "--resume")
    assert code == 1 and f"A study runs in {place} already: `kedro study` (process 7 on elsewhere" in said, said
    held.release()


@pytest.mark.cli
def test_a_study_that_was_shot_goes_on_on_another_machine(project, place, move):
    words = ("kedro", "study", "--env=test", "--seeds=1", f"--params=data_root={place}")
    process = project.start(*words, SMALL_HANG="grpo:1", SMALL_HANG_S="900")
    arm = objects(place) / "07_model_output/grpo/seed=1"
    deadline = time.monotonic() + 300
    while not (arm / "checkpoints" / "iteration=000001" / "SHA256SUMS").exists():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()[0]
        time.sleep(0.1)
    run = Record.read(arm)
    process.kill()
    process.wait()
    _kill(run.pid)
    move("second")
    code, said = project.command(*words, "--resume")
    assert code == 0, said
    assert (Record.read(arm).mlflow_run_id, Record.read(arm).status) == (run.mlflow_run_id, "finished")
    assert {one.info.status for one in project.runs()} == {"FINISHED"}
    assert len([one for one in project.runs() if one.info.run_name.startswith("study-")]) == 1
    whole(project)
    assert made(objects(place)) == made(project.data)


def _kill(pid):
    import os

    os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.cli
def test_a_study_on_a_server_that_speaks_s3(project, tmp_path, monkeypatch):
    with served("studies") as variables:
        words = ("kedro", "study", "--env=test", "--seeds=1", "--params=data_root=s3://studies/a")
        code, said = project.command(*words, XDG_CACHE_HOME=str(tmp_path / "one"), **variables)
        assert code == 0, said
        variables["XDG_CACHE_HOME"] = str(tmp_path / "two")
        code, said = project.command("kedro", "study", "status", *words[2:], **variables)
        assert code == 0 and "7 finished" in said, said
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "two"))
        keys = [value for name, value in variables.items() if "KEY" in name]
        stored = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert stored and not any(key.encode() in content for key in keys for content in stored)
    whole(project)
    assert made(working_folder("s3://studies/a")).items() <= made(project.data).items()
