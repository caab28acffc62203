"""``python -m gemma_alignment``: ``kedro run`` without the word, and the project's other commands by name."""

import sys
from pathlib import Path
from typing import Any

from kedro.framework.cli.utils import find_run_command
from kedro.framework.project import configure_project


def main(*args: Any, **kwargs: Any) -> Any:
    """Run a pipeline, or the command that the first word names."""
    package = Path(__file__).parent.name
    configure_project(package)
    from gemma_alignment.cli import cli

    words = list(args[0]) if args else sys.argv[1:]
    if words and words[0] in cli.commands:
        return cli.main(args=words, prog_name=f"python -m {package}", **kwargs)
    interactive = hasattr(sys, "ps1")
    kwargs.setdefault("standalone_mode", not interactive)
    return find_run_command(package)(*args, **kwargs)


if __name__ == "__main__":
    main()
