"""Where and when something was measured: what a number is worth."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

PACKAGES = ("torch", "transformers", "peft", "kedro", "mlflow")


def processor() -> str:
    """The name that the system gives its processor."""
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def commit() -> str:
    """The commit that is checked out, with a + where files differ from it."""
    found = subprocess.run(["git", "describe", "--always", "--dirty=+"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def described() -> dict[str, object]:
    """Processor, cores, load, versions, commit, date."""
    return {
        "processor": processor(), "cores": os.cpu_count(), "load": [round(value, 1) for value in os.getloadavg()],
        "python": platform.python_version(), "date": datetime.date.today().isoformat(), "commit": commit(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }  # fmt: skip
