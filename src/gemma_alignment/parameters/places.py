"""Paths that parameters name."""

import os
import re

COMMIT = re.compile(r"[0-9a-f]{40}")


def check_inside(**paths: str | None) -> None:
    """Refuse a relative path that climbs out of the project: another folder is named from the root on.

    Raises:
        ValueError: with the parameter and its value.
    """
    for name, path in paths.items():
        if path is None or os.path.isabs(path):
            continue
        if "\0" in path or os.path.normpath(path).split(os.sep)[0] == os.pardir:
            raise ValueError(f"{name} is {path!r}, which leaves the project: give an absolute path for that")


def check_pinned(**revisions: str | None) -> None:
    """Refuse a revision that may stand for something else tomorrow.

    Raises:
        ValueError: for what is no commit hash.
    """
    for name, revision in revisions.items():
        if revision is not None and not COMMIT.fullmatch(revision):
            raise ValueError(f"{name} is {revision!r}, but must be a commit hash of the hub, 40 digits of 0-9a-f")
