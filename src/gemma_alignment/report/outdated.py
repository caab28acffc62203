"""Verdicts on answers that are no longer there: counted, left out, and said."""

from collections.abc import Mapping
from typing import Any

from gemma_alignment.report.formatting import name_of
from gemma_alignment.report.runs import parse_key

Block = Mapping[str, Any]


def judged(judge: Block, is_judged: bool, outdated: Block) -> dict[str, Any]:
    """What is known of the judge, whether its word is had on the answers as they are, and the verdicts left out."""
    block = {**judge, "judged": is_judged, "outdated": dict(outdated)}
    if not is_judged and (said := sentence(outdated)):
        block["reason"] = said
    return block


def sentence(outdated: Block) -> str | None:
    """How many verdicts do not count, of which runs, and what to do; None where all do."""
    if not outdated.get("verdicts"):
        return None
    pairs = ", ".join(f"{_run(a)} v {_run(b)}" for a, b in outdated["systems"])
    beside = f" and {outdated['beside']} beside them" if outdated["beside"] else ""
    return (
        f"{outdated['verdicts']} of {outdated['of']} verdicts are on answers that have changed since. These{beside}, "
        f"all verdicts on {pairs}, are left out. To judge the answers as they are: kedro run --pipeline=evaluation"
    )


def _run(system: str) -> str:
    key = parse_key(system)
    if key is None or key.seed is None:
        return name_of(system)
    return f"{name_of(key.family)} seed {key.seed}"
