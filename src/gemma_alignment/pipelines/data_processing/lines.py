"""A row as a line of a file."""

import json
from typing import Any


def json_line(row: Any) -> bytes:
    """A line of JSON in UTF-8, keys in the order given; half a character stands there as its escape."""
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "backslashreplace")
