"""Ctrl-C and SIGTERM as an error that Kedro's hooks see."""

import signal
import threading
from types import FrameType
from typing import Any

from gemma_alignment.errors import RunInterrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Signals:
    """Turns the first signal into a ``RunInterrupted`` in the main thread; the second acts as ever."""

    def __init__(self) -> None:
        self.received: int | None = None
        self._held = False
        self._why: str | None = None
        self._one_at_a_time = threading.Lock()
        self._before: dict[signal.Signals, Any] = {}

    def install(self) -> None:
        """Begin to listen; without effect in another thread, where Python refuses handlers."""
        if threading.current_thread() is threading.main_thread() and not self._before:
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def stop(self, why: str) -> None:
        """From another thread: let the run end as by a signal, with this reason; a second one comes too late.

        Without effect before it listens and once the run is over.
        """
        with self._one_at_a_time:
            if self._before and not self._held and self._why is None:
                self._why = why
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)  # also out of a wait

    def hold(self) -> None:
        """From now on a first signal is not acted on: the run is over, and how it ended is being written down."""
        self._held = True

    def restore(self) -> None:
        """Put back what was there before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.restore()
        if not self._held:
            self.received = number
            raise RunInterrupted(number, self._why)
