"""A model or an adapter as a directory: saved by ``save_pretrained``, handed on as a path."""

import json
from pathlib import Path
from typing import Any, Protocol

from kedro.io import AbstractDataset
from kedro_datasets._typing import JSONPreview

from gemma_alignment.datasets.atomic import beside, restore


class Saveable(Protocol):
    """What a node that makes a model returns."""

    def save_pretrained(self, directory: str) -> Any:
        """Write everything that is needed to load it again into ``directory``."""
        ...


class ModelDirectoryDataset(AbstractDataset[Saveable, str]):
    """A directory that ``save_pretrained`` fills.

    ``load`` gives its absolute path: the node that reads it chooses device and precision, and no
    model is copied between nodes. ``save`` writes beside and swaps, so a directory is whole or not there.
    """

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self.metadata = metadata

    def load(self) -> str:
        """The absolute path of the directory.

        Raises:
            FileNotFoundError: when there is none.
        """
        if not self._exists():
            raise FileNotFoundError(f"no model directory at {self._filepath}")
        return str(self._filepath.resolve())

    def save(self, data: Saveable) -> None:
        """Call ``data.save_pretrained`` on a directory beside, then swap."""
        restore(self._filepath)
        with beside(self._filepath) as path:
            path.mkdir()
            data.save_pretrained(str(path))

    def _exists(self) -> bool:
        restore(self._filepath)
        return self._filepath.is_dir() and any(self._filepath.iterdir())

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}

    def preview(self) -> JSONPreview:
        """The configuration file and the sizes, for Kedro-Viz; nothing before there are any."""
        if not self._exists():
            return JSONPreview("{}")
        files = {one.name: one.stat().st_size for one in sorted(self._filepath.iterdir()) if one.is_file()}
        shown: dict[str, Any] = {"bytes": files}
        for name in ("adapter_config.json", "config.json"):
            if name in files:
                shown[name] = json.loads((self._filepath / name).read_text(encoding="utf-8"))
        return JSONPreview(json.dumps(shown))
