"""One run on a machine of a cluster whose study is in a bucket: its own folder there, what it fetches and brings."""

import dataclasses
import json
import pickle
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

from gemma_alignment.fingerprints import ATTEMPT, Record
from gemma_alignment.storage import lease as leases
from gemma_alignment.storage import patience
from gemma_alignment.storage.address import working_folder
from gemma_alignment.storage.bucket import Away, Bucket, Unreachable
from gemma_alignment.storage.mirror import Mirror
from gemma_alignment.study import attempt as module
from gemma_alignment.study.engine import Site
from gemma_alignment.study.machine import Outcome, Premises
from gemma_alignment.study.oversight import held
from gemma_alignment.study.plan import Run
from gemma_alignment.study.processes import Child
from gemma_alignment.study.remote import attempt_of


@pytest.fixture
def sight(tmp_path, monkeypatch):
    """A study on a bucket; from then on this is another machine, with an empty cache."""
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(leases, "SETTLED", 0.0)
    address = f"local://{tmp_path}/store/a"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "driver"))
    with held(working_folder(address), address) as sight:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "worker"))
        yield sight


@pytest.fixture
def elsewhere(sight, tmp_path):
    """``elsewhere(pipelines, **params)``: the attempt of the study."""

    def make(*pipelines, **params):
        root = sight.mirror.folder
        child = Child(Run(pipelines, params, "test"), root / "07_model_output" / "preparation.log")
        site = Site(tmp_path, root, "cpu", 1, 1, sight.address, sight.lease.mark)
        return attempt_of(child, Premises.here(site), {})

    return make


def test_a_machine_works_in_a_folder_of_its_own_and_brings_the_log(elsewhere, tmp_path, monkeypatch):
    attempt = elsewhere("sft")
    real = subprocess.Popen

    def say(words, **options):
        return real([sys.executable, "-c", f"print({words[-1]!r})"], **options)

    monkeypatch.setattr(module.subprocess, "Popen", say)
    assert attempt() == Outcome(0)
    name = "07_model_output/preparation.log"
    assert (tmp_path / "store/a" / name).read_text() == "--env=test\n"
    assert not attempt.log.exists() and (working_folder(attempt.premises.address) / name).exists()
    assert pickle.loads(pickle.dumps(attempt)) == attempt  # noqa: S301 -- our own bytes


def test_a_lost_run_goes_on_from_what_it_had_brought(elsewhere, tmp_path, monkeypatch):
    attempt = elsewhere("grpo", seed=1)
    record = Record("grpo", 1, "", {}, {}, host="elsewhere", pid=7, attempt=attempt.mark)
    record.write(tmp_path / "store/a/07_model_output/grpo/seed=1")
    words, over = [], SimpleNamespace(wait=lambda seconds=None: 0, poll=lambda: 0, pid=7)
    monkeypatch.setattr(module.subprocess, "Popen", lambda said, **options: words.extend(said) or over)
    assert attempt() == Outcome(0)
    assert words[-1] == "seed=1,overwrite=false,resume=true"


@pytest.mark.parametrize(
    ("lease", "is_brought"),
    [(None, True), ({"host": socket.gethostname(), "pid": 7}, True), ({"host": "elsewhere", "pid": 7}, False)],
    ids=["let-go-of", "its-own", "anothers"],
)
def test_a_log_is_not_brought_over_that_of_who_has_taken_over(elsewhere, tmp_path, monkeypatch, lease, is_brought):
    attempt, folder = elsewhere("grpo", seed=1), "07_model_output/grpo/seed=1"
    attempt = dataclasses.replace(attempt, log=attempt.premises.data_root / folder / "run.log")
    (tmp_path / "store/a" / folder).mkdir(parents=True)
    (tmp_path / "store/a" / folder / "run.log").write_text("there")

    def start(said, stdout, **options):
        stdout.write(b"here"), stdout.flush()
        if lease is not None:
            (tmp_path / "store/a" / folder / "lease.json").write_text(json.dumps(lease))
        return SimpleNamespace(wait=lambda seconds=None: 0, poll=lambda: 0, pid=7)

    monkeypatch.setattr(module.subprocess, "Popen", start)
    assert attempt() == Outcome(0)
    assert (tmp_path / "store/a" / folder / "run.log").read_text() == ("here" if is_brought else "there")


def test_what_an_earlier_study_lost_is_overwritten_though_only_that_study_wrote_that_it_failed(
    sight, elsewhere, tmp_path, monkeypatch
):
    """The bucket still says running, so its record is another one there than where the run was handed over."""
    run = "07_model_output/grpo/seed=1"
    record = Record("grpo", 1, "", {}, {}, host="elsewhere", pid=7, attempt="of the earlier study")
    record.write(tmp_path / "store/a" / run)
    sight.gather()
    record.end("failed", "its machine was lost").write(sight.mirror.folder / run)
    attempt = elsewhere("grpo", seed=1, overwrite=True)
    words, over, marks = [], SimpleNamespace(wait=lambda seconds=None: 0, poll=lambda: 0, pid=7), []

    def start(said, env, **options):
        words.extend(said), marks.append(env[ATTEMPT])
        return over

    monkeypatch.setattr(module.subprocess, "Popen", start)
    assert attempt() == Outcome(0)
    assert words[-1] == "seed=1,overwrite=true"
    monkeypatch.setenv(ATTEMPT, marks[0])  # as the run that it starts: lost, it is gone on with
    dataclasses.replace(Record("grpo", 1, "", {}, {}), host="elsewhere", pid=7).write(tmp_path / "store/a" / run)
    monkeypatch.delenv(ATTEMPT)
    assert attempt() == Outcome(0)
    assert words[-1] == "seed=1,overwrite=false,resume=true"


HERE = {"host": socket.gethostname()}


@pytest.mark.parametrize(
    ("place", "told"),
    [({"host": "elsewhere"}, "running"), (HERE, "failed"), ({**HERE, "born": "another-boot/1/17"}, "running")],
    ids=["another machine", "this machine", "another machine of this name"],
)
def test_a_study_does_not_say_for_another_machine_that_its_run_failed(tmp_path, monkeypatch, place, told):
    monkeypatch.setattr(leases, "SETTLED", 0.0)
    address, run = f"local://{tmp_path}/store/a", "07_model_output/grpo/seed=1"
    with held(tmp_path / "driver", address) as sight:
        node = Mirror(address, tmp_path / "node")
        record = Record("grpo", 1, "", {}, {}, **place)
        record.write(node.folder / run), node.push([run])
        sight.gather()
        record.end("failed", "its machine was lost").write(sight.mirror.folder / run)
        (sight.mirror.folder / run / "run.log").write_text("seen here")
        sight.bring()
        assert Record.read(tmp_path / "store/a" / run).status == told
        assert (tmp_path / "store/a" / run / "run.log").read_text() == "seen here"


@pytest.mark.parametrize(("status", "stays"), [("finished", True), ("failed", False)])
def test_a_study_removes_only_what_a_run_of_this_machine_left_untold(tmp_path, monkeypatch, status, stays):
    """A cleaner took the rest; a run that was shot after it set checkpoints aside has given them up."""
    monkeypatch.setattr(leases, "SETTLED", 0.0)
    address, run = f"local://{tmp_path}/store/a", "07_model_output/grpo/seed=1"
    names = ("06_models/grpo/seed=1/policy", f"{run}/checkpoints/iteration=000001/SHA256SUMS", f"{run}/responses.jsonl")
    with held(tmp_path / "driver", address) as sight:
        here = sight.mirror
        Record("grpo", 1, "", {}, {}).end(status).write(here.folder / run)
        for name in names:
            (here.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (here.folder / name).write_text("x")
        (here.folder / "06_models/grpo/seed=1/kept").write_text("x")
        sight.bring()
        for name in names:
            (here.folder / name).unlink()
        sight.bring()
        there = [(tmp_path / "store/a" / name).exists() for name in names]
        assert there == [True, stays, stays]


def test_a_run_that_finished_during_an_outage_brings_that_after_its_study_gave_it_up(tmp_path, monkeypatch):
    monkeypatch.setattr(leases, "SETTLED", 0.0)
    address, run = f"local://{tmp_path}/store/a", "07_model_output/grpo/seed=1"
    with held(tmp_path / "driver", address) as sight:
        node = Mirror(address, tmp_path / "node")
        record = Record("grpo", 1, "", {}, {}, host="elsewhere")
        record.write(node.folder / run), node.push([run])
        sight.gather()
        record.end("finished").write(node.folder / run)
        (node.folder / run / "responses.jsonl").write_text("1\n")
        record.end("failed", "its machine was lost").write(sight.mirror.folder / run)
        sight.bring()
        again = Mirror(address, tmp_path / "node")  # as the same command on that machine
        again.pull(), again.push([run]), sight.gather()
        for place in (node.folder, tmp_path / "store/a", sight.mirror.folder):
            assert Record.read(place / run).status == "finished"
            assert (place / run / "responses.jsonl").read_text() == "1\n"
        copy = sight.mirror.folder / run
        dataclasses.replace(Record.read(copy), variant_kind="sweep").write(copy)
        sight.bring()
        assert Record.read(tmp_path / "store/a" / run).variant_kind == "sweep"  # a label is the study's own


def test_what_was_finished_here_while_the_bucket_was_away_is_not_done_before_the_bucket_has_it(elsewhere, monkeypatch):
    attempt, run = elsewhere("grpo", seed=1), "07_model_output/grpo/seed=1"
    node = Mirror(attempt.premises.address)
    record = Record("grpo", 1, "", {}, {}, attempt=attempt.mark)
    record.write(node.folder / run), node.push([run])
    record.end("finished").write(node.folder / run)
    begun, over = [], SimpleNamespace(wait=lambda seconds=None: 0, poll=lambda: 0, pid=7)
    monkeypatch.setattr(module.subprocess, "Popen", lambda said, **options: begun.append(said[-1]) or over)
    assert attempt() == Outcome(0) and len(begun) == 1  # which brings it, and all that belongs to it
    node.push([run])
    assert attempt() == Outcome(0) and len(begun) == 1


@pytest.mark.parametrize("verb", ["write", "listing", "read"])
def test_a_bucket_that_is_away_when_a_run_begins_is_waited_for(elsewhere, monkeypatch, verb):
    attempt, real, calls = elsewhere("grpo", seed=1), getattr(Bucket, verb), []
    Record("grpo", 1, "", {}, {}, attempt=attempt.mark).end("finished").write(
        working_folder(attempt.premises.address) / "07_model_output/grpo/seed=1"
    )

    def away(self, *words):
        calls.append(words)
        if len(calls) in (1, 3, 6):
            raise Away("it is away.")
        return real(self, *words)

    waits, over = [], SimpleNamespace(wait=lambda seconds=None: 0, poll=lambda: 0, pid=7)
    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=waits.append))
    monkeypatch.setattr(Bucket, verb, away)
    monkeypatch.setattr(module.subprocess, "Popen", lambda said, **options: over)
    assert attempt() == Outcome(0) and waits


def test_another_study_is_refused(elsewhere, tmp_path):
    attempt = elsewhere("sft")
    (tmp_path / "store/a/study.lock").write_text("{}")
    assert "is held by another study, or by none, as seen from here" in attempt().word


def test_storage_without_rights_is_refused(elsewhere, tmp_path, monkeypatch):
    attempt = elsewhere("sft")
    monkeypatch.setattr(Bucket, "write", lambda self, name, content: (_ for _ in ()).throw(Unreachable("no right")))
    assert attempt().word.endswith("no right")
