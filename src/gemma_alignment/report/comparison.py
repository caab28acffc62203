"""The comparison: every number of the report, as one JSON-ready mapping."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from gemma_alignment.parameters.reporting import ProtocolParameters
from gemma_alignment.report.by_source import by_source
from gemma_alignment.report.cautions import cautions
from gemma_alignment.report.comparing import (
    Block,
    adjust_family,
    compare_metric,
    compare_to_half,
    over_prompts,
)
from gemma_alignment.report.conclusions import keep_the_gate, limits, not_estimable, verdict_block
from gemma_alignment.report.eligibility import equality_checks, exclusions, missing_runs
from gemma_alignment.report.matched import matched
from gemma_alignment.report.metrics import COSTS, METRICS
from gemma_alignment.report.outdated import judged
from gemma_alignment.report.overoptimization import overoptimization
from gemma_alignment.report.phases import phases
from gemma_alignment.report.provenance import canonical_fingerprint, configuration
from gemma_alignment.report.reward_model import reward_model_card
from gemma_alignment.report.robust import robust_blocks
from gemma_alignment.report.runs import REWARD_MODEL, SFT, Run, RunKey, finite
from gemma_alignment.report.seeds import seeds_block
from gemma_alignment.report.stability import stability_blocks
from gemma_alignment.report.variants import variant_blocks
from gemma_alignment.report.win_rates import Outcomes, pairs_to_report, results_between, win_rate_block

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Study:
    """What a comparison is made from."""

    runs: Mapping[RunKey, Run]
    outcomes: Outcomes
    protocol: ProtocolParameters
    draws: int
    generator: np.random.Generator
    eval_scores: Sequence[Mapping[str, Any]] = ()
    """What the reward model says of each held-out pair."""
    prompts: Sequence[Mapping[str, Any]] = ()
    """The held-out prompts, with their source where the data names it."""
    bootstrap_seed: int = 0
    """What ``generator`` was made from."""
    rows: Mapping[str, Any] = field(default_factory=dict)
    """Counts of the preference rows."""
    outdated: Mapping[str, Any] = field(default_factory=dict)
    """The verdicts on answers that have changed since."""

    @property
    def families(self) -> tuple[str, str]:
        """The two methods."""
        return self.protocol.method_a, self.protocol.method_b


def compare_study(study: Study, judge: Mapping[str, Any], versions: Mapping[str, str]) -> Block:
    """Compare the two methods of the protocol over every run that can be compared.

    Args:
        study: the runs, the judged outcomes, the protocol.
        judge: ``kind``, ``model``, ``card`` and ``how_to_judge``.
        versions: of the software that made the comparison.
    """
    protocol = study.protocol
    left_out = exclusions(study.runs, study.families)
    used = [r for k, r in study.runs.items() if k.family in study.families and k.seed is not None and k not in left_out]
    by_family = {
        name: {r.key.seed: r for r in used if r.key.family == name and r.key.seed is not None}
        for name in study.families
    }
    rates = _win_rates(study, {r.key for r in used})
    metrics = {**_judged_metrics(study, rates), **_run_metrics(study, by_family)}
    holm_table = adjust_family(metrics, protocol.secondary_metrics)
    for row in holm_table:
        metrics[row["metric"]]["holm_p"] = row["holm_p"]
    for name, block in metrics.items():
        block["role"] = _role(name, protocol)
    comparison: Block = {
        "schema_version": SCHEMA_VERSION,
        "protocol": {**asdict(protocol), "fingerprint": fingerprint(protocol)},
        "runs": [_run_row(r, left_out.get(k)) for k, r in study.runs.items() if k.seed is not None],
        "equal": equality_checks(used, protocol, _preparation(study.runs)),
        "metrics": metrics,
        "win_rates": rates,
        "holm": holm_table,
        "costs": {name: _cost(name, by_family) for name in COSTS},
        "mlflow_view": _mlflow_view(study.runs),
        "phases": phases(study.runs, study.families),
        "baseline": _baseline(study.runs, used),
        "by_source": by_source(study.runs, used, study.families, study.prompts),
        "stability": stability_blocks(study.runs, protocol),
        **variant_blocks(study.runs, protocol),
        "judge": judged(judge, bool(any(rates.values())), study.outdated),
        "matched": matched(by_family, protocol),
        "overoptimization": overoptimization(by_family),
        "reward_model_card": reward_model_card(study.eval_scores, protocol.confidence, study.generator),
        "data": dict(study.rows),
        "reward_model": _last_row(study.runs.get(RunKey(REWARD_MODEL, None)), f"{REWARD_MODEL}/"),
        "sft": _last_row(study.runs.get(RunKey(SFT, None)), f"{SFT}/"),
        "versions": dict(versions),
    }
    draws = {"bootstrap_draws": study.draws, "bootstrap_seed": study.bootstrap_seed}
    comparison["configuration"] = configuration(study.runs, used, comparison["judge"], draws)
    comparison["robust"] = robust_blocks(metrics, protocol, study.generator)
    comparison["seeds"] = seeds_block(metrics, _least_seeds(by_family), protocol)
    comparison["verdict"] = verdict_block(comparison, protocol)
    keep_the_gate(metrics, comparison["verdict"])
    comparison["cautions"] = cautions(comparison)
    comparison["limits"] = limits(comparison, protocol)
    comparison["not_estimable"] = not_estimable(comparison, missing_runs(study.runs, protocol), left_out)
    return comparison


def fingerprint(protocol: ProtocolParameters) -> str:
    """The fingerprint that the report prints of its protocol."""
    return canonical_fingerprint(asdict(protocol))


def _mlflow_view(runs: Mapping[RunKey, Run]) -> str | None:
    """The address that the newest record names; one that shows the arms of a study before one that shows all."""
    cards = [run.card for run in runs.values() if run.card.get("mlflow_view")]
    newest = max(cards, key=lambda card: ("=study-" in card["mlflow_view"], card["created"]), default=None)
    return None if newest is None else newest["mlflow_view"]


def _least_seeds(by_family: Mapping[str, Mapping[int, Run]]) -> int:
    return min(map(len, by_family.values()))


def _win_rates(study: Study, used: set[RunKey]) -> Block:
    names = {key.name for key in used} | {SFT}
    kept = {k: v for k, v in study.outcomes.items() if k[0] in names and k[1] in names}
    lengths = {
        key.name: {str(row["prompt_id"]): len(str(row["response"])) for row in run.responses}
        for key, run in study.runs.items()
        if key.name in names
    }
    return {
        name: win_rate_block(results_between(kept, *pair), pair, lengths, study.protocol, study.generator, study.draws)
        for name, pair in pairs_to_report(*study.families).items()
    }


def _judged_metrics(study: Study, rates: Mapping[str, Any]) -> Block:
    a, b = study.families
    found: Block = {}
    if head_to_head := _rates_by_seed(rates[f"{a}_vs_{b}"]):
        found["win_rate"] = compare_to_half(METRICS["win_rate"], head_to_head, study.protocol)
    against = [_rates_by_seed(rates[f"{name}_vs_{SFT}"]) for name in (a, b)]
    if all(against):
        metric = METRICS["win_rate_against_sft"]
        found[metric.name] = compare_metric(metric, against[0], against[1], study.protocol, study.generator)
    return found


def _rates_by_seed(block: Mapping[str, Any] | None) -> dict[int, float]:
    if block is None:
        return {}
    return {int(seed): one["rate"] for seed, one in block["per_seed"].items() if one["rate"] is not None}


def _run_metrics(study: Study, by_family: Mapping[str, Mapping[int, Run]]) -> Block:
    found: Block = {}
    for metric in METRICS.values():
        if metric.source == "judge":
            continue
        a, b = (
            {s: v for s, run in runs.items() if (v := metric.value(run)) is not None} for runs in by_family.values()
        )
        if not a and not b:
            continue  # no run has it: an absent metric, not a failed one
        block = compare_metric(metric, a, b, study.protocol, study.generator)
        if metric.source == "responses":
            values = [_values_by_prompt(runs, metric.field) for runs in by_family.values()]
            block["over_prompts"] = over_prompts(values[0], values[1], study.protocol, study.generator, study.draws)
        found[metric.name] = block
    return found


def _values_by_prompt(runs: Mapping[int, Run], field: str) -> dict[int, dict[str, float]]:
    return {
        seed: {str(r["prompt_id"]): v for r in run.responses if (v := finite(r.get(field))) is not None}
        for seed, run in runs.items()
        if run.responses
    }


def _role(name: str, protocol: ProtocolParameters) -> str:
    if name == "win_rate":
        return "primary"
    return "secondary" if name in protocol.secondary_metrics else "descriptive"


def _run_row(run: Run, why_not: str | None) -> Block:
    return {
        "name": run.key.name,
        "family": run.key.family,
        "method": run.key.method,
        "variant": run.key.variant,
        "seed": run.key.seed,
        "status": run.card.get("status"),
        "left_out": why_not,
        "last_iteration": run.last_iteration,
        "mlflow_run_id": run.card.get("mlflow_run_id"),
        "fingerprints": run.card.get("fingerprints") or {},
        "final": {m.name: v for m in METRICS.values() if (v := m.value(run)) is not None},
        "costs": {m.name: v for m in COSTS.values() if (v := m.value(run)) is not None},
    }


def _cost(name: str, by_family: Mapping[str, Mapping[int, Run]]) -> Block:
    metric = COSTS[name]
    block: Block = {"label": metric.label, "unit": metric.unit, "per_seed": {}, "mean": {}}
    for family, runs in by_family.items():
        values = {str(s): v for s, run in runs.items() if (v := metric.value(run)) is not None}
        block["per_seed"][family] = values
        block["mean"][family] = sum(values.values()) / len(values) if values else None
    return block


def _baseline(runs: Mapping[RunKey, Run], used: list[Run]) -> dict[str, float]:
    """Where every arm starts: the evaluation at iteration 0, and the SFT model's own answers."""
    found = {}
    for metric in METRICS.values():
        if metric.source == "history":
            values = [v for run in used if run.history and (v := run.initial(metric.name)) is not None]
            if values:
                found[metric.name] = sum(values) / len(values)
        elif metric.source == "responses" and RunKey(SFT, None) in runs:
            value = metric.value(runs[RunKey(SFT, None)])
            if value is not None:
                found[metric.name] = value
    return found


def _preparation(runs: Mapping[RunKey, Run]) -> Mapping[str, Any]:
    """The ``run.json`` of the reward model's stage."""
    run = runs.get(RunKey(REWARD_MODEL, None))
    return {} if run is None else run.card


def _last_row(run: Run | None, prefix: str) -> dict[str, float]:
    """The last value of every key of a stage that trains once."""
    if run is None:
        return {}
    keys = sorted({key for row in run.history for key in row if key.startswith(prefix)})
    return {key: value for key in keys if (value := run.final(key)) is not None}
