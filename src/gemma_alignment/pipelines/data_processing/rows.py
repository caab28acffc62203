"""What makes a preference row good, one reason a fault."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

Row = dict[str, Any]
FIELDS = ("prompt", "prompt_id", "chosen", "rejected", "messages", "score_chosen", "score_rejected")


def parse(line: bytes, max_bytes: int) -> tuple[Any, str | None]:
    """(value, None) for a line that is a JSON object, else (what can be shown of it, the reason)."""
    shown = line[:1000].decode("utf-8", "replace")
    if len(line) > max_bytes:
        return shown, f"line of {len(line)} bytes is longer than max_line_bytes {max_bytes}"
    try:
        value = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        return shown, f"invalid UTF-8 at byte {error.start}"
    except (ValueError, RecursionError) as error:
        return shown, f"not JSON: {type(error).__name__}"
    return (value, None) if isinstance(value, dict) else (shown, "not a JSON object")


def fault(row: Mapping[str, Any], low: float, high: float) -> str | None:
    """The first thing wrong with a row on its own, None when there is none."""
    absent = [name for name in FIELDS if name not in row]
    if absent:
        return f"missing field {', '.join(absent)}"
    if not isinstance(row["prompt"], str) or not row["prompt"].strip():
        return "prompt is empty or no text"
    if not isinstance(row["prompt_id"], str) or not row["prompt_id"]:
        return "prompt_id is empty or no text"
    for name in ("chosen", "rejected"):
        wrong = _message_fault(row[name])
        if wrong:
            return f"{name}: {wrong}"
        score = row[f"score_{name}"]
        if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
            return f"score_{name} is not a number"
        if not low <= score <= high:
            return f"score_{name} {score} lies outside {low}..{high}"
    if row["chosen"][-1]["content"].strip() == row["rejected"][-1]["content"].strip():
        return "chosen and rejected are identical"
    return None


def _message_fault(messages: Any) -> str | None:
    if not isinstance(messages, list) or len(messages) < 2:
        return "not a list of at least two messages"
    if not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages):
        return "a message without text content"
    if [m.get("role") for m in messages] != ["user", "assistant"]:
        return f"roles are {[m.get('role') for m in messages]}, not user, assistant"
    return None if messages[-1]["content"].strip() else "empty answer"


def pair_key(row: Row) -> bytes:
    """A digest of (prompt, chosen, rejected): equal for an exact repeat of a pair."""
    parts = [row["prompt"], row["chosen"][-1]["content"], row["rejected"][-1]["content"]]
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def check_rows(
    lines: Iterable[tuple[int, bytes]], max_bytes: int, low: float, high: float
) -> tuple[list[Row], list[Row]]:
    """Every line is kept or rejected: ({"line", "row"} kept, {"line", "reason", "row"} rejected)."""
    kept: list[Row] = []
    rejected: list[Row] = []
    pairs: set[bytes] = set()
    prompts: dict[str, bytes] = {}
    for number, line in lines:
        row, reason = parse(line, max_bytes)
        if reason is None:
            reason = fault(row, low, high)
        if reason is None:
            digest = hashlib.sha256(row["prompt"].encode("utf-8", "surrogatepass")).digest()
            if prompts.setdefault(row["prompt_id"], digest) != digest:
                reason = "this prompt_id stands for another prompt in an earlier line"
            elif pair_key(row) in pairs:
                reason = "an exact repeat of an earlier pair"
        if reason is None:
            pairs.add(pair_key(row))
            kept.append({"line": number, "row": row})
        else:
            rejected.append({"line": number, "reason": reason, "row": row})
    return kept, rejected
