"""JSON lines: bytes in, an index of offsets, rows parsed when asked for."""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, overload

from kedro.io import AbstractDataset
from kedro_datasets._typing import TablePreview

from gemma_alignment.datasets.atomic import beside, restore
from gemma_alignment.errors import UserError
from gemma_alignment.pipelines.data_processing.lines import json_line


class JSONLinesFile(Sequence[Any]):
    """The rows of a file, read from disk one at a time: a million of them cost eight megabytes.

    Blank lines are no rows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._starts = array("q")
        position = 0
        with path.open("rb") as file:
            for line in file:
                if line.strip():
                    self._starts.append(position)
                position += len(line)

    def __len__(self) -> int:
        """The number of lines that are not blank."""
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        """The parsed row, or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        with self.path.open("rb") as file:
            file.seek(self._starts[index])
            return self._parse(file.readline(), index)

    def __iter__(self) -> Iterator[Any]:
        """Every parsed row, in one pass over the file."""
        with self.path.open("rb") as file:
            for i, start in enumerate(self._starts):
                file.seek(start)
                yield self._parse(file.readline(), i)

    def _parse(self, line: bytes, index: int) -> Any:
        try:
            return json.loads(line)
        except ValueError as error:
            message = f"Row {index + 1} of {self.path} is not JSON ({error}). Mend or remove that line."
            raise UserError(message) from error


class JSONLinesDataset(AbstractDataset[Iterable[Any], JSONLinesFile]):
    """Rows as JSON lines in UTF-8, keys in the order given; ``bytes`` are written as they are."""

    def __init__(self, filepath: str, metadata: dict[str, Any] | None = None) -> None:
        self._filepath = Path(filepath)
        self.metadata = metadata

    def load(self) -> JSONLinesFile:
        """Index the file."""
        restore(self._filepath)
        return JSONLinesFile(self._filepath)

    def save(self, data: Iterable[Any]) -> None:
        """Write beside, then rename."""
        with beside(self._filepath) as path, path.open("wb") as file:
            for row in data:
                file.write((row if isinstance(row, bytes) else json_line(row)) + b"\n")

    def _exists(self) -> bool:
        restore(self._filepath)
        return self._filepath.is_file()

    def _describe(self) -> dict[str, Any]:
        return {"filepath": str(self._filepath)}

    def preview(self, rows: int = 5) -> TablePreview:
        """The first rows as a table, for Kedro-Viz, none before there are any; no text and no number: shown as JSON."""
        first = self.load()[:rows] if self._exists() else []
        columns = list(dict.fromkeys(key for row in first for key in row))
        cells = [[_cell(row.get(column)) for column in columns] for row in first]
        return TablePreview({"index": list(range(len(first))), "columns": columns, "data": cells})


def _cell(value: Any) -> Any:
    return value if isinstance(value, str | int | float | None) else json.dumps(value, ensure_ascii=False)
