"""A store that does not answer is waited for; what one refuses is not."""

import itertools
from types import SimpleNamespace

import pytest

from gemma_alignment.storage import patience as module
from gemma_alignment.storage.bucket import Away, Bucket, Unreachable
from gemma_alignment.storage.lease import Lease
from gemma_alignment.storage.patience import patiently


@pytest.fixture(autouse=True)
def slept(monkeypatch):
    """The seconds that were slept, which no clock but this one sees."""
    waits = []
    clock = SimpleNamespace(monotonic=lambda: sum(waits), sleep=waits.append)
    monkeypatch.setattr(module, "time", clock)
    return waits


def failing(times, error):
    """Work that fails so many times, or for ever."""
    turns = itertools.count()

    def work():
        if times is None or next(turns) < times:
            raise error
        return "done"

    return work


def test_one_that_is_away_is_asked_again_and_that_is_said_once(slept, caplog):
    assert patiently(failing(4, Away("it is away."))) == "done"
    assert slept == [1.0, 2.0, 4.0, 8.0]
    assert caplog.messages == ["it is away. It is waited for, 600 s"]


def test_one_that_stays_away_is_waited_for_ten_minutes(slept):
    with pytest.raises(Away):
        patiently(failing(None, Away("it is away.")))
    assert 500 < sum(slept) <= 600 and max(slept) == 60.0


def test_what_is_refused_is_waited_for_only_by_who_would_lose_something(slept):
    with pytest.raises(Unreachable, match="no right"):
        patiently(failing(1, Unreachable("no right")))
    assert slept == []
    assert patiently(failing(1, Unreachable("no right")), Unreachable) == "done"


def test_who_has_no_time_is_told_at_once(slept):
    with pytest.raises(Away):
        patiently(failing(1, Away("it is away.")), seconds=0.0)
    assert slept == []


def test_a_lease_that_was_made_though_the_store_went_away_is_ones_own(tmp_path, monkeypatch):
    bucket, real, turns = Bucket(f"local://{tmp_path}/a"), Bucket.create, itertools.count()

    def create(*words):
        is_made = real(*words)
        if next(turns) == 0:
            raise Away("it is away.")
        return is_made

    monkeypatch.setattr(Bucket, "create", create)
    lease = Lease.take(bucket, "a/lease.json", {"host": "elsewhere", "pid": 7}, "it is being made", seconds=60.0)
    assert lease.is_mine() and next(turns) == 2
