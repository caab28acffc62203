"""Whether a process that wrote its number down still runs, and is not another one that got the number later."""

import fcntl
import os
import socket
import time
from pathlib import Path
from typing import IO

HELD = ".run.lock"
"""Locked in the folder of a stage for as long as the process runs that writes there."""
MOMENT = 2.0
"""Seconds in which a lock that somebody only looks at is free again."""


def birth(pid: int) -> str | None:
    """What only this process has: the boot and the PID namespace it was started in, and its start in ticks of the boot.

    No clock is read, so none that jumps matters. None where the system does not tell, or the process is over.
    """
    fields, here = _stat(pid), _numbering()
    return None if fields is None or here is None else f"{here}/{fields[19]}"


def is_here(host: str | None, born: str | None) -> bool:
    """Whether a process with this ``birth`` would be seen here by its number: a host name alone is no machine.

    Machines made from one image may share it, and containers, which do not see each other's processes. Neither is the
    same machine seen before it was restarted.
    """
    return host == socket.gethostname() and (born is None or born.rpartition("/")[0] == _numbering())


def _numbering() -> str | None:
    """What a number of a process means something in: a boot of a machine, and there a PID namespace."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def runs(pid: int, born: str | None) -> bool:
    """Whether process ``pid`` runs, of those seen here; ``born`` is what ``birth`` said of it, if anything."""
    fields = _stat(pid)
    if fields is not None and fields[0] == "Z":
        return False  # over, and not yet collected by its parent
    if born is not None and fields is not None:
        return birth(pid) == born
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _stat(pid: int) -> list[str] | None:
    """The fields of ``/proc/PID/stat`` after the name, which may hold anything."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return None


def hold(directory: Path) -> IO[str] | None:
    """Hold the folder of a stage until the file is closed or this process ends, however; None: another one holds it.

    The system lets go of it, on whatever machine: storage that several machines share has to pass locks on.
    """
    directory.mkdir(parents=True, exist_ok=True)
    file = (directory / HELD).open("a", encoding="utf-8")
    deadline = time.monotonic() + MOMENT
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                file.close()
                return None
            time.sleep(MOMENT / 20)
        else:
            return file


def is_held(directory: Path) -> bool:
    """Whether a process holds the folder."""
    try:
        with (directory / HELD).open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False  # nothing was ever held there
    return False
