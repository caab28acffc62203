"""Where a run came from: commit and command."""

import shlex
import subprocess
import sys
from pathlib import Path

from gemma_alignment.redaction import scrubbed


def git_commit(project: Path) -> str | None:
    """The commit that is checked out in ``project``, or None outside git."""
    return _git(project, "rev-parse", "HEAD") or None


def git_is_dirty(project: Path) -> bool | None:
    """Whether tracked files differ from that commit; None outside git."""
    text = _git(project, "status", "--porcelain", "--untracked-files=no")
    return None if text is None else bool(text)


def _git(project: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=project, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def command() -> str:
    """The command line of this process, fit to be typed again but for secrets of the environment."""
    program = Path(sys.argv[0])
    if program.name == "__main__.py":
        name = "kedro" if program.parent.name == "kedro" else f"python -m {program.parent.name}"
    else:
        name = program.name.removeprefix("python -m ")
    return scrubbed(" ".join([name, *map(shlex.quote, sys.argv[1:])]))
