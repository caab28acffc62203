"""The peak memory of a stage: allocated on the GPU where there is one, else resident in the process."""

import sys
from pathlib import Path
from typing import Any

STATUS = Path("/proc/self/status")
CLEAR = Path("/proc/self/clear_refs")
RESET_PEAK = "5"
"""What the kernel takes in ``clear_refs`` for: the peak is what is resident now (man 5 proc)."""


def _cuda() -> Any:
    """``torch.cuda`` if torch is loaded and sees a GPU; it is not loaded for this."""
    torch = sys.modules.get("torch")
    return torch.cuda if torch is not None and torch.cuda.is_available() else None


def reset_peak() -> None:
    """Begin anew: what a stage before this one needed does not count. Without effect where the system cannot."""
    if (cuda := _cuda()) is not None:
        cuda.reset_peak_memory_stats()
    elif CLEAR.exists():
        try:
            CLEAR.write_text(RESET_PEAK, encoding="ascii")
        except OSError:  # a container may forbid it: then the peak is that of the process so far
            return


def peak_mb() -> float | None:
    """The peak since then in MiB; None where the system does not tell."""
    if (cuda := _cuda()) is not None:
        return round(cuda.max_memory_allocated() / 2**20, 1)
    if not STATUS.exists():
        return None
    lines = (line.split() for line in STATUS.read_text(encoding="ascii", errors="replace").splitlines())
    found = {words[0]: words[1] for words in lines if len(words) > 1}
    return round(int(found["VmHWM:"]) / 1024, 1) if "VmHWM:" in found else None
