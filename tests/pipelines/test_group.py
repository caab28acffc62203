"""Processes that one of them starts: they meet, or end; and of several it is said which one has ended."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import pytest

from gemma_alignment.errors import UserError
from gemma_alignment.liveness import runs
from gemma_alignment.pipelines import group

FORK = multiprocessing.get_context("fork")
SHOT = "import os, time; time.sleep(0.3); os.kill(os.getpid(), 9)"
FAILED = "raise SystemExit(1)"
LIVES = "import time; time.sleep(60)"


@pytest.fixture
def others(monkeypatch):
    """``others(programs)``: what the other processes do, in the order of their numbers, in place of following."""

    def be(*programs):
        def start(number, count, port):
            return subprocess.Popen([sys.executable, "-c", programs[number - 1]])

        monkeypatch.setattr(group, "_start", start)

    return be


def said(work):
    """The error with which ``work`` ends in a process of its own, within 30 seconds."""
    hear, tell = FORK.Pipe(duplex=False)

    def run():
        try:
            work()
        except UserError as error:
            tell.send(str(error))
        os._exit(0)  # as what waits in the library stays there

    process = FORK.Process(target=run)
    process.start()
    try:
        assert hear.poll(30), "it still waits"
        return hear.recv()
    finally:
        process.kill()
        process.join()


def company(count):
    with group.started(count):
        pass


@pytest.mark.parametrize(
    ("programs", "word"),
    [
        ([SHOT], r"process 2 of the 2 of this run has ended (status -9)"),
        ([LIVES, FAILED], r"process 3 of the 3 of this run has ended (status 1)"),
    ],
)
def test_one_that_ends_before_all_have_met_ends_the_run_at_once_and_is_named(others, programs, word):
    others(*programs)
    assert said(lambda: company(len(programs) + 1)).startswith(word)


def test_those_that_live_and_do_not_meet_are_not_waited_for_for_ever(others, monkeypatch):
    monkeypatch.setattr(group, "MEETING", 0.2)
    others(LIVES, LIVES)
    assert said(lambda: company(3)).startswith("the 3 processes of this run have not met in 0 seconds")


@pytest.mark.parametrize(
    ("programs", "word"),
    [
        ([SHOT, FAILED], r"process 2 of the 3 of this run has ended \(status -9\)"),
        ([FAILED, FAILED, SHOT], r"process 4 of the 4 of this run has ended \(status -9\)"),
        ([LIVES, FAILED], r"process 3 of the 3 of this run has ended \(status 1\)"),
    ],
)
def test_of_several_that_ended_the_one_that_was_shot_is_named(others, monkeypatch, programs, word):
    monkeypatch.setattr(group, "ENDING", 3.0)
    others(*programs)
    with pytest.raises(UserError, match=word), group._others(len(programs) + 1, 0):
        time.sleep(0.1)
        raise RuntimeError("a sum did not come about")


def test_what_fails_while_all_live_is_said_as_it_is(others, monkeypatch):
    monkeypatch.setattr(group, "ENDING", 0.1)
    others(LIVES)
    with pytest.raises(RuntimeError, match="another reason"), group._others(2, 0):
        raise RuntimeError("another reason")


def test_the_others_end_with_the_first_though_they_have_not_met_it_yet():
    hear, tell = FORK.Pipe(duplex=False)

    def first():
        with group._others(2, 1) as started:  # nobody listens there
            tell.send(started[0].pid)
            time.sleep(60)

    process = FORK.Process(target=first)
    process.start()
    other = hear.recv()
    try:
        time.sleep(1.0)
        assert runs(other, None)
        process.kill()
        process.join()
        deadline = time.monotonic() + 10
        while runs(other, None):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        if runs(other, None):
            os.kill(other, signal.SIGKILL)
