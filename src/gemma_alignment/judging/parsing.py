"""From a judge's raw reply to a verdict by slot, or to nothing."""

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gemma_alignment.schemas import Verdict

_SLOTS: "dict[str, Verdict]" = {"1": "first", "2": "second", "tie": "tie"}
_KEYS = ("verdict", "winner")
_FENCE = "```"


def parse_verdict(reply: object) -> "Verdict | None":
    """The verdict that ``reply`` states, or None: a refusal or a broken reply is not a tie.

    The whole reply must be a JSON object with ``verdict`` (or ``winner``) "1", "2" or "tie",
    or that word alone; one Markdown code fence around it is tolerated. Nothing is searched
    for *inside* other text, so that an answer quoted in the reply can never pass for a
    verdict. A key given twice, or two keys that disagree, are no verdict.

    Never raises, whatever it is given.
    """
    if not isinstance(reply, str):
        return None
    text = _without_fence(reply.strip())
    if text in _SLOTS:
        return _SLOTS[text]
    try:
        parsed = json.loads(text, object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError):
        return None
    if not isinstance(parsed, dict):
        return None
    stated = {_slot(parsed[key]) for key in _KEYS if key in parsed}
    return stated.pop() if len(stated) == 1 else None


def _slot(value: object) -> "Verdict | None":
    # bool is an int in Python: True must not read as slot 1.
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value) if value in (1, 2) else None
    return _SLOTS.get(value.strip().lower()) if isinstance(value, str) else None


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is given twice")
    return result


def _without_fence(text: str) -> str:
    """The inside of one code fence that spans the whole text, with or without ``json`` behind it."""
    if not (text.startswith(_FENCE) and text.endswith(_FENCE) and len(text) > 2 * len(_FENCE)):
        return text
    inside = text[len(_FENCE) : -len(_FENCE)]
    return inside.removeprefix("json").strip()
