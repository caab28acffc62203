"""The strict builder: a section of the YAML becomes a frozen dataclass, or an error to mend it by."""

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

from gemma_alignment.errors import UserError

T = TypeVar("T")


LARGEST = 2**1024
"""No float reaches it; an integer from here on cannot become one."""
SHOWN = 200
"""Characters of a value that an error repeats."""


class ConfigError(UserError):
    """A parameter is unknown, missing, of the wrong type or out of range."""


def build(cls: type[T], mapping: Mapping[str, Any], section: str) -> T:
    """Build the dataclass ``cls`` from ``mapping``, the values under ``section`` of the parameters (empty: their top).

    Every field needs a key and every key a field: the YAML files are the only place of defaults.
    Types are checked (a float is finite and accepts an int, nothing else is converted but a list to a tuple),
    nested dataclasses, ``Literal``, unions with None, lists, tuples and dicts are followed.

    Raises:
        ConfigError: naming the dotted key, what was expected, and for an unknown key the nearest one;
            a ``ValueError`` of ``__post_init__`` is passed on with the section in front.
    """
    if not isinstance(mapping, Mapping):
        raise ConfigError(f"{section}: expected a section with keys, got {_shown(mapping)}")
    prefix = f"{section}." if section else ""
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    if unknown := [str(key) for key in mapping if key not in names]:
        raise ConfigError("\n".join(unknown_parameter(prefix, key, names) for key in unknown))
    if missing := [f"{prefix}{name}" for name in names if name not in mapping]:
        raise ConfigError(f"missing parameter{'s' if len(missing) > 1 else ''}: {', '.join(missing)}")
    values = {name: _convert(hints[name], mapping[name], f"{prefix}{name}") for name in names}
    try:
        return cls(**values)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{section}: {error}" if section else str(error)) from error


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that is most like ``name``, or None where none is near."""
    matches = difflib.get_close_matches(name, [str(one) for one in known], n=1, cutoff=0.6)
    return matches[0] if matches else None


def unknown_parameter(prefix: str, name: str, known: Sequence[str]) -> str:
    """The sentence for a name that nothing reads: the nearest known one, or all of them."""
    near = nearest(name, known)
    hint = f"did you mean {prefix}{near}?" if near else f"known here: {', '.join(sorted(known)) or 'none'}"
    return f"unknown parameter {prefix}{name}; {hint}"


def _convert(expected: Any, value: Any, key: str) -> Any:
    """``value`` as the annotated type, or a ConfigError that names ``key``."""
    origin = typing.get_origin(expected)
    if expected is Any:
        return value
    if origin is Literal:
        return _literal(typing.get_args(expected), value, key)
    if origin in (Union, types.UnionType):
        return _union(typing.get_args(expected), value, key)
    if dataclasses.is_dataclass(expected):
        return build(typing.cast("type[Any]", expected), value, key)
    if origin in _CONTAINERS:
        return _CONTAINERS[origin](expected, value, key)
    if expected in _CONTAINERS:
        return _CONTAINERS[expected](expected, value, key)
    return _scalar(expected, value, key)


def _scalar(expected: Any, value: Any, key: str) -> Any:
    """A bool, int, finite float, str, path or None; True is not an int, an int is a float."""
    if expected is None or expected is type(None):
        if value is None:
            return None
    elif expected is Path:
        if isinstance(value, str | Path):
            return Path(value)
    elif expected is float:
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{key}: expected a finite number, got {value}")
        if isinstance(value, float) or (is_whole and abs(value) < LARGEST):
            return float(value)
    elif expected is int:
        if isinstance(value, int) and not isinstance(value, bool):
            return value
    elif isinstance(expected, type) and isinstance(value, expected):
        return value
    raise ConfigError(f"{key}: expected {_named(expected)}, got {_shown(value)}")


def _literal(choices: tuple[Any, ...], value: Any, key: str) -> Any:
    for choice in choices:
        if type(choice) is type(value) and choice == value:
            return choice
    near = nearest(value, [str(choice) for choice in choices]) if isinstance(value, str) else None
    hint = f"; did you mean {near}?" if near else ""
    raise ConfigError(f"{key}: expected one of {', '.join(map(str, choices))}, got {_shown(value)}{hint}")


def _union(choices: tuple[Any, ...], value: Any, key: str) -> Any:
    if value is None and type(None) in choices:
        return None
    real = [choice for choice in choices if choice is not type(None)]
    if len(real) == 1:
        return _convert(real[0], value, key)
    for choice in real:
        try:
            return _convert(choice, value, key)
        except ConfigError:
            continue
    raise ConfigError(f"{key}: expected {' or '.join(map(_named, choices))}, got {_shown(value)}")


def _list(expected: Any, value: Any, key: str) -> list[Any]:
    (item,) = typing.get_args(expected) or (Any,)
    return [_convert(item, one, f"{key}[{index}]") for index, one in enumerate(_sequence(value, key))]


def _tuple(expected: Any, value: Any, key: str) -> tuple[Any, ...]:
    items = typing.get_args(expected) or (Any, ...)
    values = _sequence(value, key)
    if items[-1] is Ellipsis:
        items = (items[0],) * len(values)
    if len(items) != len(values):
        raise ConfigError(f"{key}: expected {len(items)} values, got {len(values)}")
    pairs = zip(items, values, strict=True)
    return tuple(_convert(item, one, f"{key}[{index}]") for index, (item, one) in enumerate(pairs))


def _dict(expected: Any, value: Any, key: str) -> dict[Any, Any]:
    key_type, item = typing.get_args(expected) or (Any, Any)
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}: expected keys with values, got {_shown(value)}")
    return {_convert(key_type, k, f"{key} (key)"): _convert(item, v, f"{key}.{k}") for k, v in value.items()}


def _sequence(value: Any, key: str) -> Sequence[Any]:
    if isinstance(value, list | tuple):
        return value
    hint = "" if value is None or isinstance(value, Mapping) else f"; for a list of one write [{value}]"
    raise ConfigError(f"{key}: expected a list, got {_shown(value)}{hint if len(hint) <= SHOWN else ''}")


_CONTAINERS: dict[Any, Callable[[Any, Any, str], Any]] = {
    list: _list,
    tuple: _tuple,
    dict: _dict,
    Mapping: _dict,
    Sequence: _tuple,
}


def _named(expected: Any) -> str:
    return "null" if expected in (None, type(None)) else getattr(expected, "__name__", str(expected))


def _shown(value: Any) -> str:
    if value is None:
        return "null"
    try:
        text = repr(value)
    except ValueError:  # Python writes no integer of more than some thousand digits
        text = "a number of thousands of digits"
    cut = text if len(text) <= SHOWN else f"{text[:SHOWN]}… {len(text)} characters"
    return f"{cut} ({type(value).__name__})"
