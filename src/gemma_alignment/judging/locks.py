"""Waiting for a lock of the operating system in steps: it can be stopped, and it says what it waits for."""

import fcntl
import logging
import time
from collections.abc import Callable
from typing import BinaryIO

logger = logging.getLogger(__name__)

POLL_S = 0.05
"""Seconds between two looks at a lock that somebody else holds."""


def take(file: BinaryIO, kind: int, wait: Callable[[float], None], told_after_s: float) -> None:
    """Lock ``file`` until it is closed; such a lock ends with its process, however that comes about.

    Args:
        file: what is locked.
        kind: fcntl.LOCK_SH or fcntl.LOCK_EX.
        wait: sleeps for so many seconds, or raises to end the waiting.
        told_after_s: seconds of waiting after which it is said, once; infinite: never.
    """
    since, told = time.monotonic(), False
    while not _is_mine(file, kind):
        if not told and time.monotonic() - since >= told_after_s:
            logger.info("Another process judges over the same cache and is waited for (%s).", file.name)
            told = True
        wait(POLL_S)


def _is_mine(file: BinaryIO, kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
