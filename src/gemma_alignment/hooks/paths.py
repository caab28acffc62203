"""Relative paths among the parameters of a command: they mean the folder where it was typed, in every process."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gemma_alignment.config import ConfigError
from gemma_alignment.dotted import dotted, nested
from gemma_alignment.parameters.places import check_inside
from gemma_alignment.storage.address import check_address, plain

PATHS = ("preferences.path", "judge.recorded_path", "judge.labelled_path", "judge.reference_path")


ROOT = "data_root"


def absolute(given: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted parameters of a command with the paths among them made absolute, and ``data_root=file:///x`` made ``/x``.

    Raises:
        ConfigError: for a relative path that climbs out of the folder, and a bucket that cannot be one.
    """
    root = given.get(ROOT)
    paths = {key: value for key, value in given.items() if key in PATHS and isinstance(value, str) and value}
    try:
        check_inside(**paths)
        if isinstance(root, str):  # here already: Kedro builds its catalog before it asks for the parameters
            check_address(root)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    place = {ROOT: plain(root)} if isinstance(root, str) else {}
    return {**given, **place, **{key: str(Path.cwd() / value) for key, value in paths.items()}}


def absolute_tree(given: Mapping[str, Any]) -> dict[str, Any]:
    """The same of nested ones."""
    return nested(absolute(dotted(given)))
