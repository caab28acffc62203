"""Inputs that are not there, and the commands that make them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, MemoryDataset
from kedro.pipeline import Pipeline

from gemma_alignment.errors import UserError
from gemma_alignment.hooks.checks import free_inputs, path_of
from gemma_alignment.stages import STAGES
from gemma_alignment.storage.names import RECORD


def check_inputs(pipeline: Pipeline, catalog: Any, pipelines: Mapping[str, Pipeline], options: str) -> None:
    """Refuse a pipeline whose inputs do not exist.

    Args:
        pipeline: what is about to run.
        catalog: the data catalog.
        pipelines: the registry: which pipeline makes which dataset.
        options: what belongs behind the commands that are named, such as `` --env=test``.

    Raises:
        UserError: with the missing datasets, where they should stand, and the commands in order.
    """
    missing = [name for name in free_inputs(pipeline) if not _is_there(name, catalog, pipeline)]
    if not missing:
        return
    lines = [f"  {name}  ({_place(name, catalog)})" for name in missing]
    commands = _commands(missing, catalog, pipelines)
    text = "These inputs are missing:\n" + "\n".join(lines)
    if commands:
        typed = [f"  kedro run --pipeline={name}{options}" for name in commands]
        text += "\nMake them by:\n" + "\n".join(typed)
    raise UserError(text)


def _is_there(name: str, catalog: Any, making: Pipeline) -> bool:
    """Whether a dataset exists, or is a folder view of what ``making`` is about to write."""
    dataset = catalog.get(name)
    if dataset is None:
        return False
    if type(dataset)._exists is AbstractDataset._exists:
        return True  # it cannot tell; loading will
    there = bool(dataset.exists())
    if not isinstance(dataset, MemoryDataset):
        dataset.release()  # a folder view remembers what it saw, and is read again after others wrote
    return there or any(_is_part(catalog.get(made), dataset) for made in making.all_outputs())


def _is_part(dataset: Any, view: Any) -> bool:
    """Whether the file of ``dataset`` is one of the partitions that ``view`` shows."""
    suffix = getattr(view, "_filename_suffix", None)
    root, path = path_of(view), path_of(dataset)
    if suffix is None or root is None or path is None:
        return False
    # a run's record is written by the hooks, beside any other output
    return path.is_relative_to(root) and (suffix == RECORD or path.name.endswith(suffix))


def _commands(missing: list[str], catalog: Any, pipelines: Mapping[str, Pipeline]) -> list[str]:
    """The pipelines that make ``missing``, and what those need in turn, in the order of the stages."""
    wanted: set[str] = set()
    default = pipelines.get("__default__", Pipeline([]))
    usual = {tag for node in default.nodes for tag in node.tags}
    queue = list(missing)
    while queue:
        name = queue.pop()
        makers = [key for key, made in pipelines.items() if key in STAGES and _makes(made, name, catalog)]
        for maker in [key for key in makers if key in usual] or makers:
            if maker not in wanted:
                wanted.add(maker)
                needs = free_inputs(pipelines[maker])
                queue += [need for need in needs if not _is_there(need, catalog, Pipeline([]))]
    return [name for name in STAGES if name in wanted]


def _makes(pipeline: Pipeline, name: str, catalog: Any) -> bool:
    outputs, view = pipeline.all_outputs(), catalog.get(name)
    if getattr(view, "_filename_suffix", None) == RECORD:
        return False  # every stage leaves one: whatever makes the other inputs makes this too
    if name in outputs or any(_is_part(catalog.get(made), view) for made in outputs):
        return True
    path = path_of(view)  # the export reads under names of its own what an arm of the chosen method makes
    return path is not None and any(path_of(catalog.get(made)) == path for made in outputs)


def _place(name: str, catalog: Any) -> str:
    dataset = catalog.get(name)
    path = path_of(dataset) if dataset is not None else None
    if path is None:
        return "no file: another pipeline of the same run makes it"
    if path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    suffix = getattr(dataset, "_filename_suffix", "")
    return f"{path}/**/{suffix}" if suffix else str(path)
