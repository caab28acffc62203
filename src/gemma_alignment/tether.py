"""``python -m gemma_alignment.tether MODULE WORDS...``: a module as a program that ends when its parent does.

A scheduler ends a job by ending the process that it started. What that one started has to end with it: two processes
would write into one folder once the job runs again elsewhere. And a process that only computes with another one would
wait for that, with all the memory that it holds, for as long as for one that lives.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

PDEATHSIG = 1
"""``PR_SET_PDEATHSIG`` of ``prctl(2)``, kept across ``execve``."""
PARENT = "GEMMA_ALIGNMENT_TETHER"
"""Variable with the number of the parent: it may be gone before it was asked for."""


def main() -> None:
    """Become ``python -m MODULE WORDS...``, tied to the parent; the warning of a time limit is the parent's alone."""
    if Path("/proc/self/stat").exists():  # Linux, as every machine of a cluster: elsewhere nothing is tied
        ctypes.CDLL(None, use_errno=True).prctl(PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(os.environ.pop(PARENT)):
        sys.exit("the process that started this one is gone")
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # sent to the whole job, and deadly to who does not expect it
    os.execv(sys.executable, [sys.executable, "-m", *sys.argv[1:]])  # noqa: S606 -- our own words, no shell


if __name__ == "__main__":
    main()
