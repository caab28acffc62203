"""Rows as something else, made when asked for: of a million rows only their places in the file are held."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, overload

T = TypeVar("T")


class View(Sequence[T]):
    """``make(rows[i])`` for every i, or for those of ``which``, in that order."""

    def __init__(self, rows: Sequence[Any], make: Callable[[Any], T], which: Sequence[int] | None = None) -> None:
        self._rows = rows
        self._make = make
        self._which = range(len(rows)) if which is None else which

    def __len__(self) -> int:
        """How many there are."""
        return len(self._which)

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> "View[T]": ...
    def __getitem__(self, index: int | slice) -> "T | View[T]":
        """One, or a view of some."""
        if isinstance(index, slice):
            return View(self._rows, self._make, self._which[index])
        return self._make(self._rows[self._which[index]])
