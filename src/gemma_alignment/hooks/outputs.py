"""Whether what a stage left is still what it left: a byte that flipped on the disk trains no model."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from kedro.io import MemoryDataset
from kedro.pipeline import Pipeline

from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import Record, digest
from gemma_alignment.hooks.checks import path_of
from gemma_alignment.hooks.options import Options


def made(pipeline: Pipeline, catalog: Any) -> dict[str, str]:
    """The digest of every file and folder that a stage leaves."""
    paths = {name: _place(name, catalog) for name in sorted(pipeline.all_outputs())}
    return {name: digest(path) for name, path in paths.items() if path is not None and path.exists()}


def is_whole(pipeline: Pipeline, catalog: Any) -> bool:
    """Whether every file that a stage leaves exists."""
    datasets = [catalog.get(name) for name in pipeline.all_outputs()]
    return all(one.exists() for one in datasets if one is not None and not isinstance(one, MemoryDataset))


def changed(record: Record, names: Iterable[str], catalog: Any) -> list[tuple[str, Path]]:
    """Those of ``names`` that the stage of ``record`` left and that are not as it left them."""
    found = []
    for name in names:
        path = _place(name, catalog)
        if name in record.outputs and path is not None and path.exists() and digest(path) != record.outputs[name]:
            found.append((name, path))
    return found


def check_unchanged(names: Iterable[str], makers: Mapping[str, Record], catalog: Any, options: Options) -> None:
    """Refuse inputs that are not what their stage left.

    ``makers`` are the records of the stages that make them, by stage; ``options`` those of the command.

    Raises:
        UserError: with the file and the command that makes it anew.
    """
    wanted = list(names)
    for stage, record in makers.items():
        for name, path in changed(record, wanted, catalog):
            raise UserError(
                f"{path} is not what the stage {stage} left there: {name} was changed, or damaged by the disk. "
                f"Make it again:\n  kedro run --pipeline={stage}{options.typed('overwrite=true')}"
            )


def _place(name: str, catalog: Any) -> Path | None:
    dataset = catalog.get(name)
    return None if dataset is None or isinstance(dataset, MemoryDataset) else path_of(dataset)
