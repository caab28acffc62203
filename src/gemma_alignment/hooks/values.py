"""The values of the parameters that nodes read: what a stage's configuration is."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from kedro.pipeline.node import Node

from gemma_alignment.errors import UserError

UNCOUNTED = ("sharding",)
"""Of section ``modeling``: what changes nothing but rounding, as the number of processes does."""


def read_by(nodes: Iterable[Node], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that some of ``nodes`` read, without those that change nothing.

    Raises:
        UserError: for one that no file gives.
    """
    names = {name for node in nodes for name in node.inputs}
    found = dict(parameters) if "parameters" in names else dict(_looked_up(sorted(names), parameters))
    if "modeling" in found:
        found["modeling"] = {name: value for name, value in found["modeling"].items() if name not in UNCOUNTED}
    return found


def _looked_up(names: Iterable[str], parameters: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in names:
        if name.startswith("params:"):
            value: Any = parameters
            for part in name.removeprefix("params:").split("."):
                if not isinstance(value, Mapping) or part not in value:
                    raise UserError(f"missing parameter {name.removeprefix('params:')}")
                value = value[part]
            yield name.removeprefix("params:"), value
