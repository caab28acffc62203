"""Whether a process that wrote its number down still runs, and is not another one that got the number later."""

import os
from pathlib import Path


def birth(pid: int) -> str | None:
    """What only this process has: the boot it was started in and its start, in ticks since then.

    No clock is read, so none that jumps matters. None where the system does not tell, or the process is over.
    """
    fields = _stat(pid)
    if fields is None:
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None
    return f"{boot}/{fields[19]}"


def runs(pid: int, born: str | None) -> bool:
    """Whether process ``pid`` of this machine runs; ``born`` is what ``birth`` said of it, if anything."""
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
