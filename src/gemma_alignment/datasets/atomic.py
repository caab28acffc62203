"""Writes that are whole or not there: beside the target first, then renamed onto it."""

import copy
import json
import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset
from kedro_datasets._typing import JSONPreview, PlotlyPreview

from gemma_alignment.liveness import runs


@contextmanager
def beside(target: Path) -> Iterator[Path]:
    """A free path in the folder of ``target`` that takes its place when the block ends without an error.

    What the block leaves there may be a file or a directory. It is brought to the disk before the rename and the
    rename after it, so a loss of power finds the old or the new content, whole. After an error ``target`` is what
    it was, and nothing else remains; what a process of this machine was writing when it was shot goes too.
    """
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(str(os.getpid()).join(_around(target)))
    remove(new)
    _sweep(target)
    try:
        yield new
        if not new.exists():
            raise FileNotFoundError(f"nothing was written for {target}")
        _flush(new)
        _swap(new, target)
        _flush_one(target.parent)
    finally:
        remove(new)


def _flush(path: Path) -> None:
    """Bring a file, or a folder with all that is in it, to the disk."""
    for one in (*path.rglob("*"), path):
        _flush_one(one)


def _flush_one(path: Path) -> None:
    """Bring the content of a file to the disk, or the names in a folder."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def _around(target: Path) -> tuple[str, str]:
    """What stands before and after the number of a process in the name of what it writes on this machine."""
    machine = re.sub(r"[^\w-]", "-", socket.gethostname())
    return f".{target.stem}.{machine}.", f".new{target.suffix}"


def _sweep(target: Path) -> None:
    """Remove what processes left beside ``target`` that no longer run: a model of gigabytes, maybe."""
    before, after = _around(target)
    for left in target.parent.iterdir():
        if left.name.startswith(before) and left.name.endswith(after):
            pid = left.name[len(before) : -len(after)]
            if pid.isdecimal() and not runs(int(pid), None):
                remove(left)


def _swap(new: Path, target: Path) -> None:
    """Put ``new`` in the place of ``target``: one rename for a file, two for a directory."""
    if new.is_dir() and target.exists():
        old = target.with_name(f".{target.name}.old")
        remove(old)
        target.rename(old)
        new.rename(target)
        remove(old)
    else:
        new.replace(target)


def restore(target: Path) -> None:
    """Bring back the directory that a kill between the two renames of a swap left aside."""
    old = target.with_name(f".{target.name}.old")
    if old.is_dir() and not target.exists():
        old.rename(target)


def discard(directory: Path) -> None:
    """Remove a directory that is gone at once, whole: renamed first, then emptied."""
    gone = directory.with_name(f".{directory.name}.gone")
    remove(gone)
    if directory.exists():
        directory.rename(gone)
        remove(gone)


def remove(path: Path) -> None:
    """Remove a file, or a directory with all that is in it; nothing there is no error."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


class AtomicDataset(AbstractDataset[Any, Any]):
    """Any dataset of one file, written beside its place and then renamed onto it.

    In the catalog: ``type`` this class, ``dataset`` the definition of the dataset that reads and
    writes the format (without ``filepath``), ``filepath`` the file.
    """

    def __init__(
        self, dataset: str | dict[str, Any], filepath: str, metadata: dict[str, Any] | None = None
    ) -> None:
        self._dataset = {"type": dataset} if isinstance(dataset, str) else dict(dataset)
        self._filepath = Path(filepath)
        self.metadata = metadata
        self._at(self._filepath)

    def _at(self, path: Path) -> AbstractDataset[Any, Any]:
        """The wrapped dataset on another path."""
        definition = {**copy.deepcopy(self._dataset), "filepath": str(path)}
        return AbstractDataset.from_config(self._filepath.name, definition)

    def load(self) -> Any:
        """What the wrapped dataset reads."""
        return self._at(self._filepath).load()

    def save(self, data: Any) -> None:
        """Let the wrapped dataset write beside, then rename."""
        with beside(self._filepath) as path:
            self._at(path).save(data)

    def preview(self) -> JSONPreview:
        """What the wrapped dataset shows in Kedro-Viz; one of another kind than JSON has ``preview: false`` there."""
        if not self._exists():
            return JSONPreview("{}")
        shown: JSONPreview = self._at(self._filepath).preview()  # type: ignore[attr-defined]
        return shown

    def _exists(self) -> bool:
        return self._filepath.is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "dataset": self._dataset.get("type")}


class AtomicPlotDataset(AtomicDataset):
    """The same around a figure of Plotly, which Kedro-Viz draws."""

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        super().__init__("plotly.JSONDataset", filepath, metadata)

    def preview(self) -> PlotlyPreview:
        """The figure; Kedro-Viz reads the kind of a preview from this annotation."""
        if not self._exists():
            return PlotlyPreview({"data": [], "layout": {}})
        return PlotlyPreview(json.loads(self._filepath.read_text(encoding="utf-8")))
