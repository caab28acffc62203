"""One run on a machine of a cluster: what it refuses, what it goes on with, and that it ends with who started it."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest

from gemma_alignment.fingerprints import Record
from gemma_alignment.liveness import hold, runs
from gemma_alignment.study import attempt as module
from gemma_alignment.study import orphans
from gemma_alignment.study.attempt import Attempt
from gemma_alignment.study.engine import Site
from gemma_alignment.study.lock import alone
from gemma_alignment.study.machine import Outcome, Premises
from gemma_alignment.study.plan import Run
from gemma_alignment.study.processes import Child
from gemma_alignment.study.remote import attempt_of
from gemma_alignment.tether import PARENT

GONE = 2**22 + 1
"""No process has this number: Linux counts to 2**22."""


@pytest.fixture
def handed_over(tmp_path):
    """``handed_over(pipelines, **params)``: the attempt of a child in a folder that a study holds."""
    (tmp_path / "pyproject.toml").touch()

    def make(*pipelines, **params):
        with alone(tmp_path / "data"):
            child = Child(Run(pipelines, params, "test"), tmp_path / "data" / "out" / "run.log")
            return attempt_of(child, Premises.here(Site(tmp_path, tmp_path / "data", "cpu", 1)), {})

    return make


def write(attempt, stage, status, **facts):
    """A record as the stage would leave it, of a process of another machine that did the attempt's run."""
    folder = next(one for one in attempt.run.stages if one.name == stage).directory(attempt.premises.data_root)
    record = Record(stage=stage, seed=42, variant="", fingerprints={}, parameters={}, status=status, **facts)
    own = {"host": facts.get("host", "elsewhere"), "pid": facts.get("pid", GONE), "attempt": attempt.mark}
    record = dataclasses.replace(record, **own)
    record.write(folder)
    return folder, record


def test_a_machine_that_shares_everything_is_taken(handed_over):
    attempt = handed_over("grpo", seed=1)
    attempt.premises.check()
    assert attempt.left() is attempt.run


def test_a_machine_that_lacks_something_does_not_begin(handed_over, tmp_path):
    attempt = handed_over("sft")
    (tmp_path / "pyproject.toml").unlink()
    outcome = attempt()
    assert outcome.code == 1 and outcome.word.startswith(f"{os.uname().nodename}: the project's folder")
    assert not attempt.log.exists()


def test_storage_without_rights_is_refused(handed_over):
    attempt = handed_over("sft")
    (attempt.premises.data_root / "out").touch()  # a file where the folder of the log should be: refused to root too
    outcome = attempt()
    assert outcome.code == 1 and "the data folder cannot be written" in outcome.word


def test_a_record_that_was_there_before_is_no_earlier_attempt(handed_over):
    first = handed_over("grpo", seed=1)
    write(first, "grpo", "finished", ended="2026-01-01")
    again = handed_over("grpo", seed=1)
    assert again.left() is again.run
    assert not again.wrote(Record.read(again.run.stages[0].directory(again.premises.data_root)))


def test_a_machine_that_was_given_up_and_still_writes_is_not_written_beside(handed_over, monkeypatch):
    """One that is cut off from the others, not dead: what it holds says so."""
    monkeypatch.setattr(module, "GIVEN_UP", 0.3)
    attempt = handed_over("grpo", seed=1)
    folder, record = write(attempt, "grpo", "running")
    with hold(folder):
        outcome = attempt()
        assert outcome.code == 1
        assert f"is being written by process {GONE} on elsewhere" in outcome.word and "overwrite" not in outcome.word
        assert Record.read(folder) == record
    assert attempt.left().params["resume"] is True


def test_after_a_lost_machine_the_run_goes_on(handed_over):
    attempt = handed_over("grpo", seed=1, overwrite=True)
    folder, record = write(attempt, "grpo", "running")
    run = attempt.left()
    assert run.params == {"seed": 1, "overwrite": False, "resume": True}
    ended = Record.read(folder)
    assert (ended.status, ended.error) == ("failed", "its machine elsewhere was lost or taken away")
    assert attempt.wrote(record) and attempt.wrote(ended)


def test_stages_that_an_earlier_attempt_finished_are_not_done_again(handed_over):
    attempt = handed_over("data_processing", "sft", "reward_model")
    write(attempt, "data_processing", "finished")
    write(attempt, "sft", "killed")
    run = attempt.left()
    assert (run.pipelines, run.params["resume"]) == (("sft", "reward_model"), True)
    write(attempt, "sft", "finished")
    assert attempt.left().pipelines == ("reward_model",)
    write(attempt, "reward_model", "finished")
    assert attempt.left() is None
    assert attempt() == Outcome(0)


def test_an_earlier_attempt_on_this_machine_is_waited_for(handed_over, monkeypatch):
    attempt = handed_over("grpo", seed=1)
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        write(attempt, "grpo", "running", host=os.uname().nodename, pid=sleeper.pid, born=None)
        looks = []
        monkeypatch.setattr(orphans.time, "sleep", lambda seconds: looks.append(seconds) or sleeper.kill())
        assert attempt.left().params["resume"] is True
        assert len(looks) >= 1
    finally:
        sleeper.kill()
        sleeper.wait()


def test_a_run_ends_with_the_process_that_started_it(tmp_path):
    (tmp_path / "sleeper.py").write_text("import os, time\nprint(os.getpid(), flush=True)\ntime.sleep(60)\n")
    middle = (
        "import os, subprocess, sys\n"
        f"env = {{**os.environ, 'PYTHONPATH': os.environ.get('PYTHONPATH', '') + os.pathsep + {str(tmp_path)!r}}}\n"
        f"env[{PARENT!r}] = str(os.getpid())\n"
        "subprocess.Popen([sys.executable, '-m', 'gemma_alignment.tether', 'sleeper'], env=env).wait()\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", middle], stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    assert runs(child, None)
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + 30
    while runs(child, None) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not runs(child, None)


def test_a_run_whose_starter_is_gone_already_does_not_begin():
    done = subprocess.run(
        [sys.executable, "-m", "gemma_alignment.tether", "this"],
        env={**os.environ, PARENT: str(GONE)}, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    assert "the process that started this one is gone" in done.stderr


def test_what_ends_an_attempt_ends_its_run(handed_over, monkeypatch):
    attempt = handed_over("grpo", seed=1)
    started = []

    class Long(subprocess.Popen):
        def __init__(self, words, **options):
            super().__init__(["sleep", "60"], **options)
            started.append(self)

        def wait(self, timeout=None):
            if timeout is None:
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(module.subprocess, "Popen", Long)
    with pytest.raises(KeyboardInterrupt):
        attempt()
    assert started[0].poll() == -signal.SIGTERM


def test_an_attempt_is_a_plain_value(handed_over):
    import pickle

    attempt = handed_over("grpo", seed=1)
    assert isinstance(attempt, Attempt)
    assert pickle.loads(pickle.dumps(attempt)) == attempt  # noqa: S301 -- our own bytes: what schedulers send
