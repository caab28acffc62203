"""Where preference rows come from when the embedded world does not make them."""

import json
import random
from codecs import BOM_UTF8
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kedro.io import AbstractDataset, DatasetError

from gemma_alignment.errors import UserError, brief
from gemma_alignment.modeling.hub import spare_a_silent_hub


class PreferenceSource:
    """A handle that gives rows when asked: bytes of the user's file, or rows of a pinned hub dataset."""

    def rows(self, settings: Any, seed: int) -> Iterator[Any]:
        """Every line of ``settings.path``, or ``settings.sample_size`` rows drawn from the hub with ``seed``.

        Blank lines of the file are among them, so that all others keep their numbers.

        Raises:
            UserError: for a missing file or an unreachable hub.
        """
        return _lines(Path(settings.path)) if settings.source == "jsonl" else _download(settings, seed)


def existing(path: Path) -> Path:
    """The file of the source ``jsonl``.

    Raises:
        UserError: when there is none.
    """
    if not path.is_file():
        raise UserError(f"preferences.path is {path}, but there is no such file. Give the path of a JSON lines file.")
    return path


def _lines(path: Path) -> Iterator[bytes]:
    with existing(path).open("rb") as file:
        if file.read(len(BOM_UTF8)) != BOM_UTF8:  # some programs put one in front of UTF-8
            file.seek(0)
        for line in file:
            yield line.rstrip(b"\r\n")


def _download(settings: Any, seed: int) -> Iterator[dict[str, Any]]:
    spare_a_silent_hub()
    from datasets import load_dataset  # after: it asks when imported whether there is a hub

    try:
        table = load_dataset(settings.repository, revision=settings.revision, split=settings.split)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(
            f"Cannot fetch {settings.repository} at {settings.revision}: {brief(error)}\n"
            "Check the network and HF_TOKEN, or use a file: "
            "--params preferences.source=jsonl,preferences.path=FILE"
        ) from error
    count = min(settings.sample_size, len(table))
    order = random.Random(seed).sample(range(len(table)), count)
    return (json.loads(json.dumps(table[i])) for i in sorted(order))


class PreferenceSourceDataset(AbstractDataset[None, PreferenceSource]):
    """A catalog entry whose ``load`` gives the handle; it cannot be saved to."""

    def __init__(self, metadata: dict[str, Any] | None = None) -> None:
        self.metadata = metadata

    def load(self) -> PreferenceSource:
        """The handle; nothing is read yet."""
        return PreferenceSource()

    def save(self, data: None) -> None:
        """Refused: a source is only read."""
        raise DatasetError("a preference source is only read")

    def _exists(self) -> bool:
        return True

    def _describe(self) -> dict[str, Any]:
        return {}
