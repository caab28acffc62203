"""Which runs enter the comparison, why the others do not, and whether what should be equal is."""

from collections.abc import Mapping, Sequence
from typing import Any

from gemma_alignment.parameters.reporting import ProtocolParameters
from gemma_alignment.report.per_seed import ranges
from gemma_alignment.report.provenance import own_parameters, shared_parameters
from gemma_alignment.report.runs import Run, RunKey, baseline_fingerprints, family, finite

BROKEN = frozenset({"failed", "killed"})
"""Words of a run card that rule a run out. ``running`` does not: the card of an arm may say so until the
process that also writes this report has ended, and the history shows whether the arm is complete."""


def exclusions(runs: Mapping[RunKey, Run], families: Sequence[str]) -> dict[RunKey, str]:
    """The runs of ``families`` that cannot be compared, each with the reason.

    A run takes part when its card does not call it broken, its history reaches the number of iterations
    that its card plans (without a card: that the longest of these runs has), and ends in an evaluation.
    """
    members = {key: run for key, run in runs.items() if key.family in families and key.seed is not None}
    longest = max((run.last_iteration or 0 for run in members.values()), default=0)
    checked = {key: _why_not(run, planned_iterations(run) or longest) for key, run in members.items()}
    return {key: reason for key, reason in checked.items() if reason}


def planned_iterations(run: Run) -> int | None:
    """The number of iterations on the run's card."""
    section = (run.card.get("parameters") or {}).get("policy_optimization") or {}
    planned = finite(section.get("num_iterations"))
    return None if planned is None else int(planned)


def _why_not(run: Run, goal: int) -> str | None:
    status = str(run.card.get("status", "")).lower()
    if status in BROKEN:
        return f"its run.json says {status}"
    if run.last_iteration is None:
        return "it has no history"
    if run.last_iteration < goal:
        return f"its history ends at iteration {run.last_iteration} of {goal}"
    if run.last_evaluation != run.last_iteration:
        return f"its last iteration, {run.last_iteration}, has no evaluation"
    return None


def missing_runs(runs: Mapping[RunKey, Run], protocol: ProtocolParameters) -> list[str]:
    """The planned runs that left nothing."""
    return [
        f"{name}/seed={seed}"
        for name in (protocol.method_a, protocol.method_b)
        for seed in protocol.seeds
        if seed not in family(runs, name)
    ]


def equality_checks(
    used: Sequence[Run], protocol: ProtocolParameters, preparation: Mapping[str, Any]
) -> list[dict[str, object]]:
    """What the protocol holds equal, looked up in the runs; ``held`` is True, False or None (not known).

    ``preparation`` is the ``run.json`` of the stage that wrote the SFT model's own answers.
    """
    baseline = baseline_fingerprints(preparation)
    seeds = {run.key.seed for run in used}
    checks: list[dict[str, object]] = [
        _all_equal("same number of iterations", [run.last_iteration for run in used]),
        _all_equal("same number of sampled responses", [run.final("budget/responses") for run in used]),
    ]
    for part, label in (
        ("sft", "same SFT model"),
        ("reward_model", "same reward model"),
        ("data", "same data"),
    ):
        prints = [(run.card.get("fingerprints") or {}).get(part) for run in used]
        prints += [baseline[part]] if part in baseline else []
        checks.append(_all_equal(f"{label} (fingerprint)", prints))
    checks.append(_all_equal("same settings besides method and seed", [shared_parameters(run) for run in used]))
    for name in (protocol.method_a, protocol.method_b):
        of_method = [own_parameters(run) for run in used if run.key.family == name]
        checks.append(_all_equal(f"same settings of {name} in every seed", of_method))
    unplanned = sorted(s for s in seeds if s is not None and s not in protocol.seeds)
    checks.append(
        {
            "check": "only the planned seeds",
            "held": not unplanned,
            "detail": f"beyond the plan: {ranges(unplanned)}" if unplanned else "",
        }
    )
    complete = {
        name: {r.key.seed for r in used if r.key.family == name} for name in (protocol.method_a, protocol.method_b)
    }
    short = [f"{name}: {s}" for name, have in complete.items() for s in protocol.seeds if s not in have]
    checks.append(
        {
            "check": "every planned seed in both methods",
            "held": not short,
            "detail": f"missing {', '.join(short)}" if short else "",
        }
    )
    return checks


def _all_equal(label: str, values: Sequence[object]) -> dict[str, object]:
    known = [v for v in values if v is not None]
    if not known:
        return {"check": label, "held": None, "detail": "not recorded"}
    distinct = sorted({str(v) for v in known})
    if len(distinct) > 1:
        return {"check": label, "held": False, "detail": " / ".join(value[:12] for value in distinct)}
    if len(known) < len(values):  # those that recorded it say nothing of the others
        return {"check": label, "held": None, "detail": f"not recorded by all: {len(known)} of {len(values)}"}
    return {"check": label, "held": True, "detail": ""}
