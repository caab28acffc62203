"""Under which configuration the compared runs were made, and whether it was one."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_alignment.report.runs import Run

Block = dict[str, Any]


def canonical_fingerprint(values: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the sha256 of ``values`` as canonical JSON."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def configuration(used: Sequence[Run], judge: Mapping[str, Any]) -> Block:
    """One fingerprint over the configuration of every compared run and of the judge, and what went in.

    None where a run left no fingerprint of its configuration.
    """
    runs = {run.key.name: (run.card.get("fingerprints") or {}).get("configuration") for run in used}
    missing = sorted(name for name, found in runs.items() if not found)
    parts = {"runs": runs, "judge": {"kind": judge.get("kind"), "settings": judge.get("settings")}}
    reason = f"not recorded by {', '.join(missing)}" if missing else None if runs else "no run is compared"
    return {"fingerprint": None if reason else canonical_fingerprint(parts), "runs": runs, "reason": reason}


def own_parameters(run: Run) -> str | None:
    """A fingerprint of the method's own settings; None where its card has none."""
    section = (run.card.get("parameters") or {}).get(run.key.method)
    return None if section is None else canonical_fingerprint(section)


def shared_parameters(run: Run) -> str | None:
    """A fingerprint of everything on the card besides the seed and the method's own settings."""
    parameters = run.card.get("parameters")
    if not parameters:
        return None
    return canonical_fingerprint({k: v for k, v in parameters.items() if k not in ("seed", run.key.method)})
