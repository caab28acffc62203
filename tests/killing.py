"""Ways to end a training at a named moment."""

import os
import signal
from typing import Any


def shot(action: Any) -> int:
    """Run ``action`` in a process of its own; the signal that ended it, or 0."""
    child = os.fork()
    if child == 0:
        try:
            action()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def at_call(monkeypatch: Any, owner: Any, name: str, number: int, action: Any) -> None:
    """Let ``action`` happen at the given call of a function, before it does its work."""
    real, calls = getattr(owner, name), []

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(name)
        if len(calls) == number:
            action()
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)


def die() -> None:
    """As when the power goes: nothing is cleaned up."""
    os.kill(os.getpid(), signal.SIGKILL)
