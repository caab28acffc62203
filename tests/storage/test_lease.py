"""Leases: one owner at a time, and how they change hands."""

import itertools
import json
import os
import threading
import time

import pytest

from gemma_alignment.errors import UserError
from gemma_alignment.storage import lease as module
from gemma_alignment.storage.bucket import Bucket, Unreachable
from gemma_alignment.storage.lease import MISSED, STALE, Lease, Lost, Pulse, owner

ELSEWHERE = {"host": "elsewhere", "pid": 7, "born": "x/1", "since": "today", "command": "kedro study"}
GONE = 2**22 + 1


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    monkeypatch.setattr(module, "SETTLED", 0.0)


def take(bucket, **facts):
    return Lease.take(bucket, "a/lease.json", {**ELSEWHERE, **facts}, "grpo-seed1 is being made")


def test_the_second_is_told_who_the_first_is(bucket):
    first = take(bucket)
    with pytest.raises(UserError, match=r"grpo-seed1 is being made already: `kedro study` \(process 7 on elsewhere"):
        take(bucket, host="here")
    assert first.is_mine()
    first.release()
    assert take(bucket, host="here").is_mine() and not first.is_mine()


def test_one_whose_answer_was_lost_on_the_way_is_not_somebody_elses(bucket, monkeypatch):
    real = Bucket.create
    monkeypatch.setattr(Bucket, "create", lambda *words: real(*words) and False)  # as a client that asks twice
    assert take(bucket).is_mine()


def test_what_somebody_else_has_is_not_released(bucket):
    first = take(bucket)
    bucket.remove([first.name])
    second = take(bucket)
    first.release()
    assert second.is_mine()


def test_a_silent_one_is_anybodys_by_the_clock_of_the_store(bucket):
    first = take(bucket)
    bucket.skew = STALE - 30
    with pytest.raises(UserError, match=r"last heard of 2\d\d seconds ago.*300 seconds after its last sign"):
        take(bucket)
    bucket.skew = STALE + 30
    second = take(bucket)
    assert second.is_mine()
    with pytest.raises(Lost, match="process 7 on elsewhere has taken over"):
        first.renew()
    second.renew()
    bucket.remove([second.name])
    with pytest.raises(Lost, match="it was removed"):
        second.renew()


def test_one_of_a_process_of_this_machine_that_has_ended_is_free_at_once(bucket):
    take(bucket, **{**owner(), "pid": GONE, "born": None})
    alive = take(bucket, **owner())
    with pytest.raises(UserError, match="already"):
        take(bucket, **owner())
    assert alive.is_mine()


def test_one_of_another_machine_of_this_name_lasts_until_it_is_silent(bucket):
    """No process here has its number, which says nothing: it may be a clone, a container, or this one restarted."""
    first = take(bucket, **{**owner(), "pid": GONE, "born": "another-boot/4026531836/17"})
    bucket.skew = STALE - 30
    with pytest.raises(UserError, match="already"):
        take(bucket, **owner())
    assert first.is_mine()
    bucket.skew = STALE + 30
    assert take(bucket, **owner()).is_mine()


def test_a_lost_run_of_the_same_study_is_free_after_three_missed_beats(bucket, monkeypatch):
    monkeypatch.setattr(module, "GIVEN_UP", 0.0)
    first = take(bucket, study="mark")
    bucket.skew = MISSED - 30
    with pytest.raises(UserError, match="already"):
        take(bucket, study="mark")
    bucket.skew = MISSED + 30
    with pytest.raises(UserError, match="already"):
        take(bucket, study="another")
    second = take(bucket, study="mark")
    assert second.is_mine() and not first.is_mine()


def test_a_run_of_the_same_study_that_still_lives_is_waited_for(bucket, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.05)
    pulse = Pulse([take(bucket, study="mark")])
    monkeypatch.setattr(module, "GIVEN_UP", 0.2)
    with pytest.raises(UserError, match="already"):
        take(bucket, study="mark")
    monkeypatch.setattr(module, "GIVEN_UP", 60.0)
    threading.Timer(0.3, pulse.end).start()
    second = take(bucket, study="mark")
    assert pulse._over.is_set() and second.is_mine()


def test_it_is_looked_at_while_it_is_renewed(bucket, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.0005)
    pulse = Pulse([one := take(bucket)])
    while one._beats < 30:
        one.check()
    pulse.check(), pulse.end()
    assert not one.is_mine()


def test_a_renewed_one_is_another_version_and_says_so(bucket):
    one = take(bucket)
    before = bucket.listing()["a/lease.json"].version
    one.renew()
    assert bucket.listing()["a/lease.json"].version != before
    assert json.loads(bucket.read("a/lease.json"))["beats"] == 1


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"null"])
def test_what_cannot_be_read_is_somebodys_until_it_is_stale(bucket, content):
    bucket.write("a/lease.json", content)
    with pytest.raises(UserError, match="already: `another process`"):
        take(bucket)
    bucket.skew = STALE + 30
    assert take(bucket).is_mine()


def test_of_many_at_once_one_gets_it(bucket):
    if bucket.address.startswith("memory"):
        pytest.skip("fsspec's memory looks first and writes then")
    got, told = [], []

    def ask():
        try:
            got.append(take(bucket))
        except UserError as error:
            told.append(error)

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 1 and len(told) == 5


def test_it_is_renewed_in_the_background_until_it_is_lost(bucket, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.02)
    one, beaten = take(bucket), threading.Event()
    pulse = Pulse([one], beaten.set)
    assert beaten.wait(30)
    pulse.check()
    with one._one_at_a_time:  # not between the look and the write of a renewal
        bucket.write(one.name, b"{}")
    for thread in pulse._threads:
        thread.join(30)
    with pytest.raises(Lost):
        pulse.check()
    pulse.end()
    assert bucket.read(one.name) == b"{}"


def test_one_that_cannot_be_renewed_keeps_no_other_from_it_and_neither_do_lines_on_their_way(bucket, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.02)
    slow = threading.Event()
    first, second = (Lease.take(bucket, f"{name}/lease.json", ELSEWHERE, "it") for name in "ab")
    monkeypatch.setattr(first, "renew", lambda: (_ for _ in ()).throw(Unreachable("away")))
    pulse = Pulse([first, second], lambda: slow.wait(60))
    deadline = time.monotonic() + 30
    while second._beats < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    slow.set(), pulse.check(), pulse.end()
    assert second._beats >= 3 and not second.is_mine()


def test_who_loses_one_is_told_at_the_beat(bucket, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.02)
    told, one = [], take(bucket)
    pulse = Pulse([one], lost=told.append)
    with one._one_at_a_time:
        bucket.write(one.name, b"{}")
    for thread in pulse._threads:
        thread.join(30)
    pulse.end()
    assert len(told) == 1 and "is not this process's any more" in told[0]


def test_lines_that_are_not_wanted_any_more_are_the_end(bucket, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.02)
    pulse = Pulse([take(bucket)], lambda: (_ for _ in ()).throw(Lost("taken")))
    for thread in pulse._threads:
        thread.join(30)
    with pytest.raises(Lost, match="taken"):
        pulse.check()
    pulse.end()


def test_a_store_that_does_not_answer_is_asked_again_with_the_next_beat(bucket, monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.02)
    calls, turns = threading.Semaphore(0), itertools.count()

    def fail():
        calls.release()
        raise UserError("away") if next(turns) else OSError("the disk is full")

    pulse = Pulse([one := take(bucket)], fail)
    assert all(calls.acquire(timeout=30) for _ in range(3))
    pulse.check()
    pulse.end()
    assert not one.is_mine()


def test_an_owner_says_which_process_it_is(monkeypatch):
    monkeypatch.setenv(module.STUDY, "mark")
    facts = owner(since="now")
    assert (facts["pid"], facts["study"], facts["since"]) == (os.getpid(), "mark", "now")
