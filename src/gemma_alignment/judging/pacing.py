"""When to send, and how long to wait after a failure."""

import math
import random
import re
import threading
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

LONGEST_REQUESTED_WAIT_S = 600.0
"""A service that asks for a longer pause than this ends the run, which says when to come back."""
_FAR_OFF_S = 1e8
"""Three years: a longer wait is no date any more."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Pacer:
    """Spaces requests evenly, for all threads together, and lets one thread's failure hold up all.

    Args:
        requests_per_minute: the pace.
        stopping: when set, every wait ends at once.
        clock: seconds that only go up.
    """

    def __init__(
        self,
        requests_per_minute: float,
        stopping: threading.Event,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._interval = 60.0 / requests_per_minute
        self._stopping = stopping
        self._clock = clock
        self._lock = threading.Lock()
        self._next = 0.0

    def wait_for_turn(self) -> None:
        """Return when this thread may send."""
        while not self._stopping.is_set():
            with self._lock:
                now = self._clock()
                if self._next <= now:
                    self._next = max(self._next, now) + self._interval
                    return
                left = self._next - now
            self._stopping.wait(left)

    def hold(self, seconds: float) -> None:
        """Let nobody send for ``seconds``: the service said so."""
        with self._lock:
            self._next = max(self._next, self._clock() + seconds)


def backoff(attempt: int, base_s: float, longest_s: float, rng: random.Random) -> float:
    """Seconds before attempt ``attempt + 1``: uniform on [0, min(longest, base * 2^attempt)].

    Full jitter: clients that failed together do not come back together.
    Source: Brooker (2015), "Exponential Backoff And Jitter".
    """
    return rng.uniform(0.0, min(longest_s, base_s * 2.0 ** min(attempt, 60)))


def requested_wait(headers: Mapping[str, str]) -> float:
    """Seconds that a response asks to wait; 0 where it asks for nothing.

    Reads ``retry-after-ms``, ``retry-after`` (seconds or a date) and, where a limit is used up,
    ``x-ratelimit-reset-requests`` and ``-tokens`` (such as ``6m0s`` or ``20ms``). The longest counts.
    """
    waits = [0.0]
    if (milliseconds := _number(headers.get("retry-after-ms"))) is not None:
        waits.append(milliseconds / 1000.0)
    if (value := headers.get("retry-after")) is not None:
        seconds = _number(value)
        waits.append(_until(value) if seconds is None else seconds)
    for limit in ("requests", "tokens"):
        if _number(headers.get(f"x-ratelimit-remaining-{limit}")) == 0:
            waits.append(_duration(headers.get(f"x-ratelimit-reset-{limit}", "")))
    return max(waits)


def moment_after(seconds: float) -> str:
    """When ``seconds`` from now will have passed, in words."""
    if seconds > _FAR_OFF_S:
        return "in some years"
    return f"after {datetime.now(UTC) + timedelta(seconds=math.ceil(seconds)):%Y-%m-%d %H:%M:%S} UTC"


def _number(value: str | None) -> float | None:
    try:
        number = float(value) if value is not None else None
    except ValueError:
        return None
    return number if number is not None and 0 <= number < math.inf else None  # nan compares False


def _until(value: str) -> float:
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return 0.0
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _duration(value: str) -> float:
    parts = _DURATION.findall(value)
    return sum(float(amount) * _SECONDS[unit] for amount, unit in parts)
