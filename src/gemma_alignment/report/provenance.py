"""Under which configuration the compared runs were made and judged, and whether it was one."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from gemma_alignment.dotted import dotted
from gemma_alignment.report.runs import Run, RunKey

Block = dict[str, Any]


def canonical_fingerprint(values: Mapping[str, Any]) -> str:
    """The first 16 hex digits of the sha256 of ``values`` as canonical JSON."""
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


PREPARED = ("data_processing", "sft", "reward_model")
"""The stages that every run rests on."""
OPERATING = frozenset({
    "preferences.path", "preferences.min_rows", "judge.mode", "judge.labelled_path", "judge.reference_path",
    "judge.recorded_path", "policy_optimization.samples_per_evaluation",
    *(f"{section}.{name}" for section in ("pretraining", "sft", "reward_model", "policy_optimization")
      for name in ("checkpoint_every", "checkpoints_kept")),
    *(f"judge.remote.{name}" for name in ("batch_poll_s", "batch_size", "timeout_s", "concurrency", "max_attempts",
      "requests_per_minute", "backoff_s", "max_backoff_s", "spend_cap_usd", "prices")),
})  # fmt: skip
"""Settings of how work is done, kept or paid, and names of files: none of them changes a number of the comparison. What
stands in a file that is named counts by its digest."""
FILES = ("source", "references", "recorded", "labelled")
"""Digests of files that settings name, as a record has them."""
ANY = "*"
_HUB = ("preferences.repository", "preferences.revision", "preferences.split")
UNREAD: dict[str, dict[str, tuple[str, ...]]] = {
    "modeling.base_model": {"pretrain": ("modeling.revision",), ANY: ("tokenizer.", "tiny_model.", "pretraining.")},
    "preferences.source": {
        "embedded": _HUB,
        "jsonl": (*_HUB, "preferences.sample_size", "world."),
        "huggingface": ("world.",),
    },
    "judge.kind": {
        "rubric": ("judge.model", "judge.base_url", "judge.attempts", "judge.labelled_pairs", "judge.remote."),
        "openai": ("judge.rubric.",),
        "recorded": (
            "judge.model", "judge.base_url", "judge.seed", "judge.attempts", "judge.canaries", "judge.repeats",
            "judge.labelled_pairs", "judge.rubric.", "judge.remote.",
        ),
    },
}  # fmt: skip
"""By a setting and its value (or any other), the settings that are not read then; a dot ends the name of a section."""
BROKEN = ("failed", "killed")
"""A stage that ended so has not made what is there."""


def configuration(
    runs: Mapping[RunKey, Run], used: Sequence[Run], judge: Mapping[str, Any], draws: Mapping[str, int]
) -> Block:
    """One fingerprint over everything that can change a number of the comparison, and what went in.

    Settings of the data, the SFT and the reward model, of every compared run, of the evaluation and the judge (by the
    record of each stage), the files that they name (by digest), the judge's prompt version, and the draws of the
    report's bootstraps. Left out is what :data:`OPERATING` names and what is not read beside another setting; the
    protocol has a fingerprint of its own. None where a record is missing.

    Args:
        runs: every run and stage that left a record.
        used: the compared runs.
        judge: the judge's card.
        draws: number and seed of the bootstraps' draws.
    """
    cards = {name: runs[RunKey(name, None)].card if RunKey(name, None) in runs else {} for name in PREPARED}
    cards |= {run.key.name: run.card for run in used}
    if judge.get("judged"):
        key = RunKey("evaluation", None)
        cards["evaluation"] = runs[key].card if key in runs else {}
    missing = sorted(name for name, card in cards.items() if not card.get("parameters") or card.get("status") in BROKEN)
    reason = f"not recorded by {', '.join(missing)}" if missing else None
    if not used:
        reason = "no run is compared"
    if reason:
        return {"fingerprint": None, "parts": {}, "reason": reason}
    parts: Block = {name: _settings(card, str(judge.get("kind"))) for name, card in cards.items()}
    parts["draws"] = dict(draws)
    if judge.get("judged"):
        parts["judge"] = {name: judge.get(name) for name in ("kind", "models", "prompt_versions")}
    shown = {name: canonical_fingerprint(part) for name, part in parts.items()}
    return {"fingerprint": canonical_fingerprint(parts), "parts": shown, "reason": None}


def _settings(card: Mapping[str, Any], judge_kind: str) -> Block:
    """What a stage's record says of the settings that can change a number, by dotted name, and of files they name."""
    values = dotted(card["parameters"])
    if "judge.kind" in values:
        values["judge.kind"] = judge_kind  # what auto came to
    unread = tuple(
        name
        for setting, cases in UNREAD.items()
        if setting in values
        for name in cases.get(str(values[setting]), cases.get(ANY, ()))
    )
    sections = tuple(name for name in unread if name.endswith("."))
    counted = [n for n in values if n not in OPERATING and n not in unread and not n.startswith(sections)]
    prints = card.get("fingerprints") or {}
    files = {f"file {name}": prints[name] for name in FILES if name in prints}
    return {**{name: values[name] for name in counted}, **files}


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
