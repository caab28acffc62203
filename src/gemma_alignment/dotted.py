"""Parameters as a tree of sections, and by dotted names as ``--params`` takes them."""

from collections.abc import Iterator, Mapping
from typing import Any


def dotted(tree: Mapping[str, Any]) -> dict[str, Any]:
    """``{"grpo": {"group_size": 6}}`` as ``{"grpo.group_size": 6}``; an empty section stays a value."""
    return dict(_leaves(tree, ""))


def _leaves(tree: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of :func:`dotted`."""
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *path, last = key.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = value
    return tree


def merged(tree: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``tree`` with the nested ``changes`` in it; sections merge, everything else is replaced."""
    both = {
        key: merged(tree[key], value) if isinstance(tree.get(key), Mapping) and isinstance(value, Mapping) else value
        for key, value in changes.items()
    }
    return {**tree, **both}
