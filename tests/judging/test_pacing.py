"""When to send and how long to wait, on a clock that the test turns."""

import random
import statistics
import threading
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from gemma_alignment.judging.pacing import Pacer, backoff, moment_after, requested_wait


class Clock(threading.Event):
    """Time passes only by waiting."""

    def __init__(self):
        super().__init__()
        self.now = 100.0

    def __call__(self):
        return self.now

    def wait(self, timeout=None):
        self.now += timeout
        return False


def test_turns_are_evenly_spaced():
    clock = Clock()
    pacer = Pacer(120, clock, clock)
    turns = []
    for _ in range(4):
        pacer.wait_for_turn()
        turns.append(clock.now)
    assert turns == pytest.approx([100.0, 100.5, 101.0, 101.5])


def test_time_that_passed_unused_is_not_made_up_for_in_a_burst():
    clock = Clock()
    pacer = Pacer(60, clock, clock)
    pacer.wait_for_turn()
    clock.now += 30
    turns = []
    for _ in range(3):
        pacer.wait_for_turn()
        turns.append(clock.now)
    assert turns == pytest.approx([130.0, 131.0, 132.0])


def test_a_hold_moves_the_next_turn_and_never_forward():
    clock = Clock()
    pacer = Pacer(60, clock, clock)
    pacer.hold(10)
    pacer.hold(3)
    pacer.wait_for_turn()
    assert clock.now == pytest.approx(110.0)


def test_a_stop_ends_the_wait():
    clock = Clock()
    pacer = Pacer(1, clock, clock)
    pacer.wait_for_turn()
    clock.set()
    pacer.wait_for_turn()
    assert clock.now == 100.0


@pytest.mark.parametrize(("attempt", "most"), [(0, 1.0), (1, 2.0), (3, 8.0), (6, 60.0), (10_000, 60.0)])
def test_backoff_is_uniform_up_to_a_doubling_bound(attempt, most):
    rng = random.Random(3)
    waits = [backoff(attempt, 1.0, 60.0, rng) for _ in range(4000)]
    assert 0 <= min(waits) < 0.01 * most
    assert 0.99 * most < max(waits) <= most
    assert statistics.fmean(waits) == pytest.approx(most / 2, rel=0.04)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0.0),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "2", "retry-after-ms": "1500"}, 2.0),
        ({"retry-after": "99999"}, 99999.0),
        ({"retry-after": "inf"}, 0.0),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "soon"}, 0.0),
        ({"retry-after": "nan"}, 0.0),
        ({"retry-after": "Mon, 01 Jan 2001 00:00:00 GMT"}, 0.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m30s"}, 90.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "20ms"}, 0.02),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1h2m3.5s"}, 3723.5),
        ({"x-ratelimit-remaining-tokens": "10", "x-ratelimit-reset-tokens": "6m0s"}, 0.0),
        ({"x-ratelimit-reset-tokens": "6m0s"}, 0.0),
    ],
)
def test_the_wait_that_headers_ask_for(headers, seconds):
    assert requested_wait(headers) == pytest.approx(seconds)


@pytest.mark.parametrize("zone", [UTC, None])
def test_a_date_is_a_wait_until_then(zone):
    then = (datetime.now(UTC) + timedelta(seconds=30)).replace(tzinfo=zone)
    assert requested_wait({"retry-after": format_datetime(then)}) == pytest.approx(30, abs=2)


def test_a_far_moment_is_named_and_one_beyond_all_calendars_is_not():
    moment = datetime.strptime(moment_after(7200.2), "after %Y-%m-%d %H:%M:%S UTC").replace(tzinfo=UTC)
    assert 7198 < (moment - datetime.now(UTC)).total_seconds() < 7203
    assert moment_after(1e300) == "in some years"
