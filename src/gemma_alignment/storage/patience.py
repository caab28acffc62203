"""How long a store that does not answer is waited for, by whoever has something to lose."""

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from gemma_alignment.storage.bucket import Away, Unreachable

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

PATIENCE = 600.0
"""Seconds for which a store is waited for that worked before."""
LONGEST = 60.0
"""Seconds between two tries, at most."""


def patiently(work: Callable[[], Result], kind: type[Unreachable] = Away, seconds: float | None = None) -> Result:
    """What ``work`` gives, once the store answers; it is begun anew each time, so it has to bear that.

    Args:
        work: what needs the store.
        kind: what is waited for. What a store refuses it refuses later too: only who has made what would be lost
            otherwise waits for any cause.
        seconds: how long, ``PATIENCE`` where nothing else is said.

    Raises:
        Unreachable: what ``work`` raised last, after that time.
    """
    patience = PATIENCE if seconds is None else seconds
    deadline, wait, is_told = time.monotonic() + patience, 1.0, False
    while True:
        try:
            return work()
        except kind as error:
            if time.monotonic() + wait > deadline:
                raise
            if not is_told:
                logger.warning("%s It is waited for, %.0f s", error, patience)
            is_told = True
        time.sleep(wait)
        wait = min(LONGEST, 2 * wait)
