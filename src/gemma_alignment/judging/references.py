"""Judges of known quality: stored verdicts on pairs that experts labelled, as a yardstick for one's own judge."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gemma_alignment.judging.labelled import Label
from gemma_alignment.judging.pairing import UNPARSED

Row = Mapping[str, Any]

FIELDS = ("judge", "label", "ab_winner", "ba_winner")
_LABELS: dict[object, Label] = {"1": "a", "2": "b", "tie": "tie"}
_SHOWN_FIRST = {"1": "first", "2": "second", "tie": "tie"}
_SHOWN_SECOND = {"1": "second", "2": "first", "tie": "tie"}


def stored_judgements(rows: Iterable[Row]) -> dict[str, list[dict[str, object]]]:
    """Judge -> its verdicts as rows of judgements, both orders, each with the experts' ``label``.

    Args:
        rows: of ``judge``, ``label``, ``ab_winner`` and ``ba_winner``: output "1", "2" or "tie", the swap undone, so
            that in order BA output 2 stands in the first slot. Any other winner is unparsed. A ``subset`` is
            kept apart from the others.

    Raises:
        ValueError: a row lacks a field, or its label is none of the three.
    """
    found: dict[str, list[dict[str, object]]] = {}
    for number, row in enumerate(rows, start=1):
        missing = [name for name in FIELDS if not isinstance(row, Mapping) or name not in row]
        if missing or row["label"] not in _LABELS:
            raise ValueError(f"row {number}: {f'no field {missing[0]}' if missing else 'the label is not 1, 2 or tie'}")
        judge = str(row["judge"]) if not row.get("subset") else f"{row['judge']}, {row['subset']}"
        common = {
            "prompt_id": str(number), "system_a": "output 1", "system_b": "output 2", "reply": "stored",
            "model": str(row["judge"]), "prompt_version": "stored", "label": _LABELS[row["label"]],
        }  # fmt: skip
        for order, slots in (("ab", _SHOWN_FIRST), ("ba", _SHOWN_SECOND)):
            verdict = slots.get(str(row[f"{order}_winner"]), UNPARSED)
            found.setdefault(judge, []).append({**common, "order": order, "verdict": verdict})
    return found


def yardstick(card: Mapping[str, Any], counts: Mapping[str, int], kappa: Mapping[str, Any]) -> dict[str, object]:
    """What is shown of a judge beside others: pairs, agreement with the label, agreement of its orders, first slot."""
    names: Sequence[str] = ("pairs", "consistency", "first_slot_share", "first_slot_p", "same_slot_twice")
    shown = {name: card[name] for name in names}
    return {**shown, **counts, "kappa": kappa["kappa"], "reason": kappa["reason"]}
