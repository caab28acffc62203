"""Two processes that are started for the same output at the same time: one of them is refused."""

import os
import signal
import time

import pytest
from killing import at_call
from soak import _forget_stores

from gemma_alignment.errors import UserError
from gemma_alignment.hooks.work import Work
from gemma_alignment.liveness import is_held

pytestmark = pytest.mark.pipeline
ARM = "grpo/seed=42"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_that_another_one_overtakes_is_refused_and_costs_it_nothing(project, monkeypatch, overwrite):
    """Both find the folder free; the other begins between this one's first look and its own beginning."""
    project.run("data_processing", "sft", "reward_model")
    others = []
    at_call(monkeypatch, Work, "start", 1, lambda: others.append(begun(project)))
    try:
        with pytest.raises(UserError, match=r"seed=42 is being written by process \d+ on "):
            project.run("grpo", overwrite=overwrite)
    finally:
        for pid in others:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    history = project.data / "07_model_output" / ARM / "history.jsonl"
    assert history.read_text().count("\n") == 2
    assert project.record(ARM).pid == others[0]
    project.run("grpo", resume=True)
    assert project.record(ARM).status == "finished"
    assert history.read_text().count("\n") == 4


def begun(project):
    """The number of a process that trains the arm and waits after its second record."""
    pid = os.fork()
    if pid == 0:
        os.environ["SMALL_HANG"] = "grpo:42"
        _forget_stores()
        project.run("grpo")
        os._exit(1)
    history = project.data / "07_model_output" / ARM / "history.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (history.exists() and history.read_text().count("\n") == 2):
        time.sleep(0.05)
    return pid


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_run_whose_record_says_that_it_is_over_is_not_written_beside(project, overwrite):
    """Whatever stands in the folder, as after a scheduler gave up a machine that still works: its lock tells."""
    project.run("data_processing", "sft", "reward_model")
    other = begun(project)
    folder = project.data / "07_model_output" / ARM
    try:
        assert is_held(folder)
        project.record(ARM).end("failed", "its machine was lost").write(folder)
        with pytest.raises(UserError, match=r"seed=42 is being written by another process: wait for it, or stop it"):
            project.run("grpo", resume=not overwrite, overwrite=overwrite)
        assert (folder / "history.jsonl").read_text().count("\n") == 2
    finally:
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
    assert not is_held(folder)
    project.run("grpo", resume=not overwrite, overwrite=overwrite)
    assert project.record(ARM).status == "finished" and not is_held(folder)
