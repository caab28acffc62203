"""What makes a preference row good, one reason a fault."""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

Row = dict[str, Any]
DEEPEST = 50
"""Levels of a row: no row needs more, and a hundred times as many cannot be written again."""
TOO_DEEP = f"nested deeper than {DEEPEST} levels"
OTHER_PROMPT = "the conversation starts with another prompt than the field prompt"
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
    except json.JSONDecodeError as error:
        return shown, f"not JSON: {error.msg}, at character {error.pos + 1}"
    except RecursionError:
        return shown, TOO_DEEP
    except ValueError:  # Python reads no integer of more than some thousand digits
        return shown, "a number of thousands of digits"
    if not isinstance(value, dict):
        return shown, "not a JSON object"
    if line.count(b"[") + line.count(b"{") > DEEPEST and _depth(value) > DEEPEST:
        return shown, TOO_DEEP
    return value, None


def _depth(value: Any) -> int:
    """How many lists and objects lie in one another, counted without recursion."""
    depth, level = 0, [value]
    while level := [one for one in level if isinstance(one, dict | list)]:
        depth += 1
        level = [inner for one in level for inner in (one.values() if isinstance(one, dict) else one)]
    return depth


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
        if row[name][0]["content"].strip() != row["prompt"].strip():
            return f"{name}: {OTHER_PROMPT}"
        score = row[f"score_{name}"]
        if isinstance(score, bool) or not isinstance(score, int | float) or not _is_finite(score):
            return f"score_{name} is not a number"
        if not low <= score <= high:
            return f"score_{name} lies outside {low}..{high}"
    source = row.get("source")
    if source is not None and (not isinstance(source, str) or not source.strip()):
        return "source is not text"
    answers = [row[name][-1]["content"] for name in ("chosen", "rejected")]
    if not all(map(_is_text, (row["prompt"], row["prompt_id"], *answers, source or ""))):
        return "half a character (a lone surrogate), which no encoding has"
    if answers[0].strip() == answers[1].strip():
        return "chosen and rejected are identical"
    return None


def _is_finite(number: int | float) -> bool:
    return isinstance(number, int) or math.isfinite(number)  # an integer may be too large for isfinite


def _is_text(text: str) -> bool:
    """Whether it can be written as UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _message_fault(messages: Any) -> str | None:
    if not isinstance(messages, list) or len(messages) < 2:
        return "not a list of at least two messages"
    if not all(isinstance(m, dict) and isinstance(m.get("content"), str) for m in messages):
        return "a message without text content"
    if [m.get("role") for m in messages] != ["user", "assistant"]:
        return f"roles are {[m.get('role') for m in messages]}, not user, assistant"
    return None if messages[-1]["content"].strip() else "empty answer"


def text_of(row: Mapping[str, Any]) -> str:
    """The prompt without the spaces at its ends: one text is one prompt, under whatever prompt_ids."""
    return str(row["prompt"]).strip()


def pair_key(row: Row, better: str = "chosen", worse: str = "rejected") -> bytes:
    """A digest of prompt and answers: equal for an exact repeat of a pair, with the names swapped for its contrary."""
    parts = [row["prompt"], row[better][-1]["content"], row[worse][-1]["content"]]
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def check_rows(
    lines: Iterable[tuple[int, bytes]], max_bytes: int, low: float, high: float
) -> tuple[list[Row], list[Row]]:
    """Every line is kept or rejected: ({"line", "row"} kept, {"line", "reason", "row"} rejected); blank is neither."""
    kept: list[Row] = []
    rejected: list[Row] = []
    pairs: set[bytes] = set()
    prompts: dict[str, bytes] = {}
    for number, line in lines:
        if not line.strip():
            continue
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
