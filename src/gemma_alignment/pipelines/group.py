"""The processes that compute together: how the first one starts the others, how they meet, and which of them has ended.

``torch.distributed`` waits for a process that has ended before it joined as long as for one that lives. So whoever
starts processes looks at them itself until all have met; from then on a sum does not come about without one.
"""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

from gemma_alignment.errors import UserError
from gemma_alignment.tether import PARENT

PATIENCE = timedelta(days=2)
"""How long one process waits for another that lives: the first one may prepare, or answer held-out prompts. The end of
a process is noticed at once."""
MEETING = 300.0
"""Seconds in which processes that were started together must have met: each loads its libraries first."""
ENDING = 5.0
"""Seconds in which it is seen that another process has ended, once a sum did not come about."""
TICK = 0.05


@contextmanager
def started(count: int) -> Iterator[None]:
    """Start the others of ``count`` processes on this machine, and be their first one for as long as the block goes on.

    Raises:
        UserError: when one of them has ended, and when they do not meet.
    """
    from torch import distributed

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    with _others(count, port) as others:
        _place(0)
        address = f"tcp://127.0.0.1:{port}"
        _meet(
            others,
            lambda: distributed.init_process_group(_backend(), address, rank=0, world_size=count, timeout=PATIENCE),
        )
        try:
            yield
        finally:
            distributed.destroy_process_group()


def join() -> None:
    """Be in the group that a launcher, or the first process, described."""
    from torch import distributed

    if not distributed.is_initialized():
        _place(int(os.environ.get("LOCAL_RANK", os.environ.get("RANK", "0"))))
        distributed.init_process_group(_backend(), timeout=PATIENCE)


@contextmanager
def _others(count: int, port: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The other processes, which end with this one, whatever ends it."""
    others: list[subprocess.Popen[bytes]] = []
    try:
        for number in range(1, count):
            others.append(_start(number, count, port))
        yield others
        for other in others:
            other.wait()
    except RuntimeError as error:  # a sum that did not come about
        if (said := _said_of(others, ENDING)) is not None:
            raise UserError(said) from error
        raise
    finally:
        for other in others:
            other.kill()
        for other in others:
            other.wait()


def _start(number: int, count: int, port: int) -> subprocess.Popen[bytes]:
    names = {
        "RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port,
        PARENT: os.getpid(),
    }  # fmt: skip
    variables = {**os.environ, **{name: str(value) for name, value in names.items()}}
    words = ["-m", "gemma_alignment.tether", "gemma_alignment.pipelines.follower"]
    return subprocess.Popen([sys.executable, *words], env=variables)


def _meet(others: Sequence[subprocess.Popen[bytes]], enter: Callable[[], None]) -> None:
    """Enter the group, and look meanwhile whether the others still live: the library would only wait.

    Raises:
        UserError: when one has ended, or after ``MEETING`` seconds; what waits in the library then stays there.
    """
    failed: list[BaseException] = []

    def work() -> None:
        try:
            enter()
        except BaseException as error:  # raised below, where somebody hears it
            failed.append(error)

    thread = threading.Thread(target=work, name="meeting", daemon=True)
    thread.start()
    deadline = time.monotonic() + MEETING
    while thread.is_alive():
        thread.join(TICK)
        if (said := _said_of(others)) is not None:
            raise UserError(said)
        if time.monotonic() >= deadline:
            raise UserError(
                f"the {len(others) + 1} processes of this run have not met in {MEETING:.0f} seconds, though all of "
                "them live; what they said is above"
            )
    if failed:
        raise failed[0]


def _said_of(others: Sequence[subprocess.Popen[bytes]], patience: float = 0.0) -> str | None:
    """Which process has ended, and how, once one has; None for none.

    Where one is gone the rest fail for want of it, and may be seen to have ended before it: the one that a signal ended
    is named, else the first that was seen.
    """
    seen: dict[int, int] = {}
    deadline = time.monotonic() + patience
    while True:
        for number, other in enumerate(others, start=2):
            if (code := other.poll()) is not None:
                seen.setdefault(number, code)
        shot = [number for number, code in seen.items() if code < 0]
        if shot or len(seen) == len(others) or time.monotonic() >= deadline:
            break
        time.sleep(TICK)
    for number in (*shot, *seen):
        count = len(others) + 1
        return f"process {number} of the {count} of this run has ended (status {seen[number]}); what it said is above"
    return None


def _backend() -> str:
    import torch

    return "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"


def _place(number: int) -> None:
    """On a GPU of its own, where there are any."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(number)
