"""A row as a line of a file."""

import json
from array import array
from collections.abc import Iterable, Sequence
from tempfile import TemporaryFile
from typing import Any, overload


def json_line(row: Any) -> bytes:
    """A line of JSON in UTF-8, keys in the order given; half a character stands there as its escape."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")


class Lines(Sequence[bytes]):
    """Lines in a temporary file, which is gone with the object; eight bytes of each are held."""

    def __init__(self, lines: Iterable[bytes]) -> None:
        self._file = TemporaryFile()
        self._ends = array("q", [0])
        for line in lines:
            self._file.write(line)
            self._ends.append(self._ends[-1] + len(line))

    def __len__(self) -> int:
        """How many there are."""
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> bytes: ...
    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...
    def __getitem__(self, index: int | slice) -> bytes | list[bytes]:
        """One line, or a list of some."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        self._file.seek(self._ends[place])
        return self._file.read(self._ends[place + 1] - self._ends[place])
