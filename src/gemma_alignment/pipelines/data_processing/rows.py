"""What makes a preference row good, one reason a fault."""

import hashlib
import json
import math
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from sys import intern
from typing import Any

from gemma_alignment.pipelines.data_processing.seen import Seen
from gemma_alignment.pipelines.views import View

Row = dict[str, Any]
Rows = Sequence[Mapping[str, Any]]
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


def pair_key(row: Mapping[str, Any], better: str = "chosen", worse: str = "rejected") -> bytes:
    """A digest of prompt and answers: equal for an exact repeat of a pair, with the names swapped for its contrary."""
    parts = [row["prompt"], row[better][-1]["content"], row[worse][-1]["content"]]
    return hashlib.sha256(json.dumps(parts).encode()).digest()


def checked(
    lines: Iterable[tuple[int, bytes]], max_bytes: int, low: float, high: float
) -> Iterator[tuple[int, Any, str | None]]:
    """Number, row (or what can be shown of it) and what is wrong, None where nothing is, of every line but blank ones.

    What is remembered of a row for the sake of later ones is on disk.
    """
    pairs: Seen[int] = Seen()
    prompts: Seen[bytes] = Seen()
    for number, line in lines:
        if not line.strip():
            continue
        row, reason = parse(line, max_bytes)
        if reason is None:
            reason = fault(row, low, high)
        if reason is None:
            digest = hashlib.sha256(row["prompt"].encode("utf-8", "surrogatepass")).digest()
            if prompts.first(row["prompt_id"], digest) != digest:
                reason = "this prompt_id stands for another prompt in an earlier line"
            elif pairs.first(pair_key(row), number) != number:
                reason = "an exact repeat of an earlier pair"
        yield number, row, reason


def check_rows(
    lines: Iterable[tuple[int, bytes]], max_bytes: int, low: float, high: float
) -> tuple[list[Row], list[Row]]:
    """Every line is kept or rejected: ({"line", "row"} kept, {"line", "reason", "row"} rejected); blank is neither."""
    kept: list[Row] = []
    rejected: list[Row] = []
    for number, row, reason in checked(lines, max_bytes, low, high):
        if reason is None:
            kept.append({"line": number, "row": row})
        else:
            rejected.append({"line": number, "reason": reason, "row": row})
    return kept, rejected


def sort_lines(lines: Sequence[bytes], max_bytes: int, low: float, high: float) -> tuple[View[Row], View[Row]]:
    """The same of many lines, the first of which has number 1: rows are read again when they are asked for."""
    kept, rejected = array("I"), array("I")
    reasons: list[str] = []
    for number, _, reason in checked(enumerate(lines, 1), max_bytes, low, high):
        if reason is None:
            kept.append(number)
        else:
            rejected.append(number)
            reasons.append(intern(reason))  # many are the same text

    def good(number: int) -> Row:
        return {"line": number, "row": parse(lines[number - 1], max_bytes)[0]}

    def bad(i: int) -> Row:
        number = rejected[i]
        return {"line": number, "reason": reasons[i], "row": parse(lines[number - 1], max_bytes)[0]}

    return View(kept, good), View(range(len(rejected)), bad)


def in_order(*rejected: Rows) -> View[Row]:
    """The items of several sequences by their lines."""
    places = [(item["line"], part, i) for part, items in enumerate(rejected) for i, item in enumerate(items)]
    order = array("I", (place for _, *both in sorted(places) for place in both))

    def item(i: int) -> Row:
        found = rejected[order[2 * i]][order[2 * i + 1]]
        return {key: found[key] for key in ("line", "reason", "row")}

    return View(range(len(places)), item)


def prompts_of(rows: Rows, sources: Seen[str]) -> View[Row]:
    """Every prompt once, as its first row has it and in the order of the last ones, with the source of its text in
    ``sources`` or the row's.
    """
    first: Seen[int] = Seen()
    last: Seen[int] = Seen()
    for i, row in enumerate(rows):
        first.first(row["prompt_id"], i)
        last.last(row["prompt_id"], i)
    ids = (row["prompt_id"] for row in rows)
    which = array("I", (first.first(name, i) for i, name in enumerate(ids) if last.get(name) == i))

    def prompt(row: Mapping[str, Any]) -> Row:
        source = sources.get(text_of(row)) or row.get("source")
        named = {} if source is None else {"source": source}
        return {"prompt_id": row["prompt_id"], "prompt": row["prompt"], **named}

    return View(rows, prompt, which)
