"""Checkpoints on disk: a directory each, whole or not there, verified when read, the last few kept."""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kedro.io import AbstractDataset, DatasetError

from gemma_alignment.datasets.atomic import beside, discard, remove
from gemma_alignment.errors import UserError
from gemma_alignment.storage.names import SUMS

if TYPE_CHECKING:
    from gemma_alignment.training.checkpoints import Checkpoint

logger = logging.getLogger(__name__)

STATE = "state.json"
TENSORS = ".safetensors"
_NAME = re.compile(r"iteration=(\d+)")


class Damaged(Exception):
    """A checkpoint is not what was written; the message says where."""


class CheckpointStore:
    """The checkpoints of one run.

    Each is a directory ``iteration=000040`` with the tensors as safetensors, everything else in
    ``state.json``, and the checksums of both. It is written beside, brought to the disk and renamed
    (``atomic.beside``), so it is there whole or not at all; what a disk then does to it shows when it is read.
    """

    def __init__(self, directory: Path, resume: bool) -> None:
        self.directory = Path(directory)
        self._resume = resume
        self._damaged: set[int] = set()
        self.after_save: Callable[[], None] | None = None
        """What is done with one more checkpoint on the disk."""

    def begin(self) -> "Checkpoint | None":
        """What training goes on from; None: it begins, and what an earlier run left here is removed.

        A damaged checkpoint costs a warning and the iterations since the one before it.

        Raises:
            UserError: where none is whole and one cannot be read at all: it may be whole another time; or it is of
                another version.
        """
        unread: OSError | None = None
        for iteration in reversed(saved(self.directory)) if self._resume else ():
            try:
                return self._read(iteration)
            except (Damaged, OSError) as error:
                unread = error if isinstance(error, OSError) else unread
                self._damaged.add(iteration)
                logger.warning(
                    "The checkpoint of iteration %d in %s is damaged (%s): going back to the one before it",
                    iteration, self.directory, error,
                )  # fmt: skip
        if unread is not None:
            raise UserError(
                f"No checkpoint in {self.directory} can be read: {unread}. Mend the disk or the permissions, then use "
                "the same command again; or begin anew with overwrite=true in place of resume=true."
            )
        if self._resume:
            level = logging.WARNING if self._damaged else logging.INFO
            logger.log(level, "There is no whole checkpoint in %s: training begins anew", self.directory)
        discard(self.directory)
        self._damaged.clear()
        return None

    def save(self, checkpoint: "Checkpoint", kept: int) -> None:
        """Write a checkpoint, then remove damaged ones, all but the last ``kept``, and those set aside.

        Raises:
            UserError: where it cannot be written; the others are as they were.
        """
        iteration = checkpoint.state.iteration
        try:
            self._remove_rests()
            with beside(self._folder(iteration)) as path:
                _write(path, _files(checkpoint))
            self._damaged.discard(iteration)
            good = [one for one in saved(self.directory) if one not in self._damaged]
            for old in (*self._damaged, *good[:-kept]):
                discard(self._folder(old))
            self._damaged.clear()
            remove(_aside(self.directory))
        except OSError as error:
            raise UserError(
                f"The checkpoint of iteration {iteration} cannot be written to {self.directory}: {error}. "
                "Free or mend the disk, then go on by the same command with --params resume=true."
            ) from error
        if self.after_save is not None:
            self.after_save()

    def _folder(self, iteration: int) -> Path:
        return self.directory / f"iteration={iteration:06d}"

    def _remove_rests(self) -> None:
        """What a kill in the middle of writing left."""
        for rest in self.directory.glob(".iteration=*") if self.directory.is_dir() else ():
            shutil.rmtree(rest)

    def _read(self, iteration: int) -> "Checkpoint":
        from safetensors.torch import load

        from gemma_alignment.schemas import Mark, TrainingState
        from gemma_alignment.training.checkpoints import Checkpoint

        contents = _verified(self._folder(iteration))
        values = json.loads(contents.pop(STATE))
        tensors = {name.removesuffix(TENSORS): load(content) for name, content in contents.items()}
        try:
            position = {kind: Mark(**mark) for kind, mark in values["position"].items()}
        except TypeError as error:
            raise UserError(
                f"{self._folder(iteration)} was written by another version. "
                "Begin anew: the same command with overwrite=true in place of resume=true."
            ) from error
        return Checkpoint(TrainingState(values["iteration"], tensors, values["numbers"]), position)


def saved(directory: Path) -> list[int]:
    """The iterations of which there is a checkpoint, whole or damaged, in order."""
    names = (_NAME.fullmatch(path.name) for path in directory.iterdir()) if directory.is_dir() else ()
    return sorted(int(name[1]) for name in names if name)


def set_aside(directory: Path) -> bool:
    """Put the checkpoints of a folder where no training finds them, until one saves its own; whether there were any."""
    remove(_aside(directory))
    if not directory.exists():
        return False
    directory.rename(_aside(directory))
    return True


def put_back(directory: Path) -> None:
    """Undo ``set_aside``, where nothing was saved since."""
    if not directory.exists():
        _aside(directory).rename(directory)


def _aside(directory: Path) -> Path:
    return directory.with_name(f".{directory.name}.aside")


def _files(checkpoint: "Checkpoint") -> dict[str, bytes]:
    """The files of a checkpoint: equal ones have equal bytes."""
    from safetensors.torch import save

    state = checkpoint.state
    position = {kind: mark._asdict() for kind, mark in checkpoint.position.items()}
    values = {"iteration": state.iteration, "numbers": state.numbers, "position": position}
    files = {name + TENSORS: save(dict(tensors)) for name, tensors in state.tensors.items()}
    files[STATE] = (json.dumps(values, indent=2, sort_keys=True) + "\n").encode()
    sums = (f"{hashlib.sha256(content).hexdigest()}  {name}\n" for name, content in sorted(files.items()))
    return {**files, SUMS: "".join(sums).encode()}


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


def _verified(folder: Path) -> dict[str, bytes]:
    """The contents of a checkpoint's files.

    Raises:
        Damaged: when one is missing, or its bytes are not those that were written.
    """
    if not (folder / SUMS).is_file():
        raise Damaged(f"there is no {SUMS}")
    lines = (folder / SUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    sums = {name: content for content, _, name in (line.partition("  ") for line in lines)}
    there = {path.name for path in folder.iterdir()} - {SUMS}
    if wrong := sorted(there ^ sums.keys()):
        raise Damaged(f"{wrong[0]} is {'not in ' + SUMS if wrong[0] in there else 'missing'}")
    contents = {name: (folder / name).read_bytes() for name in sorted(there)}
    for name, content in contents.items():
        if hashlib.sha256(content).hexdigest() != sums[name]:
            raise Damaged(f"{name} does not match its checksum")
    return contents


class CheckpointStoreDataset(AbstractDataset[None, CheckpointStore]):
    """The checkpoints of a run as the input of a training node: ``load`` gives the handle, ``save`` refuses.

    Example of a catalog entry::

        "{method}.checkpoints":
          type: gemma_alignment.datasets.checkpoint_store.CheckpointStoreDataset
          filepath: data/07_model_output/{method}/seed=42/checkpoints
          resume: ${runtime_params:resume,false}
    """

    def __init__(self, filepath: str, resume: bool, metadata: dict[str, Any] | None = None) -> None:
        """Remember where they stand and whether to go on from them.

        Args:
            filepath: their folder.
            resume: whether a run goes on from the last one; else it begins, and removes them.
            metadata: for Kedro-Viz; not used here.
        """
        self._filepath = Path(filepath)
        self._resume = resume
        self.metadata = metadata

    def load(self) -> CheckpointStore:
        """The handle; nothing is read or removed yet."""
        return CheckpointStore(self._filepath, self._resume)

    def save(self, data: None) -> None:
        """Refused: a node saves to the store that it loaded.

        Raises:
            DatasetError: always.
        """
        raise DatasetError("a checkpoint store is an input: save checkpoints to it, do not return it")

    def _exists(self) -> bool:
        return True  # a store can always be opened, so it is never a missing input

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath), "resume": self._resume}
