"""Relative paths among the parameters of a command: they mean the folder where it was typed, in every process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_alignment.dotted import dotted, nested

PATHS = ("preferences.path", "judge.recorded_path", "judge.labelled_path", "judge.reference_path")


def absolute(given: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted parameters of a command with the paths among them made absolute."""
    return {
        key: str(Path.cwd() / value) if key in PATHS and isinstance(value, str) and value else value
        for key, value in given.items()
    }


def absolute_tree(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same of nested ones."""
    return nested(absolute(dotted(given)))
