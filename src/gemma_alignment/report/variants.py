"""Runs that differ from their method's configured ones in one parameter: ablations and sensitivity."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from gemma_alignment.dotted import dotted
from gemma_alignment.parameters.reporting import ProtocolParameters
from gemma_alignment.report.comparing import NEW_SEEDS, Block, describe, summary
from gemma_alignment.report.eligibility import exclusions
from gemma_alignment.report.metrics import METRICS, Metric
from gemma_alignment.report.runs import Run, RunKey
from gemma_alignment.statistics.intervals import paired_difference
from gemma_alignment.statistics.multiplicity import holm
from gemma_alignment.statistics.stability import pooled_sd
from gemma_alignment.statistics.tests import paired_student

SHOWN = ("eval/score_mean", "eval/gold_mean", "eval/kl_to_reference", "eval/response_length")
"""What is said of a variant."""
SHARED = {"data": "data", "sft": "SFT model", "reward_model": "reward model"}
"""Fingerprints that a variant and its baseline must have in common."""
SECTIONS = {"ablation": "ablations", "sweep": "sensitivity"}
"""Where a variant stands, by what it was asked for as."""
Family = Mapping[int, Run]


@dataclass(frozen=True)
class Factor:
    """One parameter of one method, and its value in the configured runs."""

    method: str
    parameter: str
    configured: Any

    def is_numeric(self, values: Sequence[Any]) -> bool:
        """Whether it has a scale on which its values can be drawn."""
        return all(isinstance(v, int | float) and not isinstance(v, bool) for v in (self.configured, *values))


def variant_blocks(runs: Mapping[RunKey, Run], protocol: ProtocolParameters) -> Block:
    """``ablations``, ``sensitivity``, and the variants in neither.

    Which parameter a variant changes, and for which section it was asked, is read from the records of the runs, not
    from its name. What was made by hand is sensitivity where a number is varied, else an ablation.
    """
    factors, left_out = _factors(runs)
    blocks: dict[str, list[Block]] = {"ablations": [], "sensitivity": []}
    for factor, families in factors.items():
        for section, members in _by_section(factor, families).items():
            blocks[section].append(_factor_block(factor, members, eligible(runs, factor.method), protocol))
    for found in blocks.values():
        _adjust(found)
    return {**blocks, "variants_left_out": left_out}


def _by_section(
    factor: Factor, families: Mapping[str, tuple[Any, Family]]
) -> dict[str, dict[str, tuple[Any, Family]]]:
    """The families of each section; one that was asked for in two ways stands in both."""
    by_hand = "sensitivity" if factor.is_numeric([value for value, _ in families.values()]) else "ablations"
    found: dict[str, dict[str, tuple[Any, Family]]] = {}
    for family, (value, members) in families.items():
        said = {kind for run in members.values() for kind in str(run.card.get("variant_kind") or "").split("+")}
        for section in [SECTIONS[kind] for kind in SECTIONS if kind in said] or [by_hand]:
            found.setdefault(section, {})[family] = value, members
    return found


def described(comparison: Mapping[str, Any]) -> set[str]:
    """The families of variants that have a section of their own."""
    return {
        one["family"]
        for factor in (*comparison["ablations"], *comparison["sensitivity"])
        for one in factor["values"]
        if one["family"] != factor["method"]
    }


def families_of(runs: Mapping[RunKey, Run]) -> list[str]:
    """Every method and variant that left a run."""
    return list(dict.fromkeys(key.family for key in runs if key.seed is not None))


def eligible(runs: Mapping[RunKey, Run], family: str) -> dict[int, Run]:
    """The complete runs of a method or variant, by seed."""
    out = exclusions(runs, [family])
    return {k.seed: r for k, r in runs.items() if k.family == family and k.seed is not None and k not in out}


def _factors(runs: Mapping[RunKey, Run]) -> tuple[dict[Factor, dict[str, tuple[Any, Family]]], list[Block]]:
    """By factor and family the value and the runs that can be shown; why each other run cannot."""
    factors: dict[Factor, dict[str, tuple[Any, Family]]] = {}
    left_out: list[Block] = []
    for family in families_of(runs):
        method, at, _ = family.partition("@")
        if not at:
            continue
        left_out += [{"what": key.name, "reason": why} for key, why in exclusions(runs, [family]).items()]
        baseline = eligible(runs, method)
        for seed, run in eligible(runs, family).items():
            found = _factor(run, baseline)
            if isinstance(found, str):
                left_out.append({"what": run.key.name, "reason": found})
                continue
            factor, value = found
            _, members = factors.setdefault(factor, {}).setdefault(family, (value, {}))
            factors[factor][family] = value, {**members, seed: run}
    return dict(sorted(factors.items(), key=lambda item: (item[0].method, item[0].parameter))), left_out


def _factor(run: Run, baseline: Family) -> tuple[Factor, Any] | str:
    """The one parameter in which a run differs from the baseline, and its value there; else why there is none."""
    if not baseline or run.key.seed is None:
        return f"no finished run of {run.key.method} to compare it with"
    other = baseline.get(run.key.seed) or next(iter(baseline.values()))
    for part, label in SHARED.items():
        mine, theirs = ((one.card.get("fingerprints") or {}).get(part) for one in (run, other))
        if mine != theirs:
            return f"it rests on another {label} than {other.key.name}"
    changed = _changes(run.card.get("parameters") or {}, other.card.get("parameters") or {})
    if len(changed) != 1:
        listed = f"{len(changed)} parameters ({', '.join(changed)})" if changed else "no recorded parameter"
        return f"it differs from {other.key.name} in {listed}, not in one"
    ((parameter, (configured, value)),) = changed.items()
    return Factor(run.key.method, parameter, configured), value


def _changes(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted name -> value in ``theirs`` and in ``mine``, where these differ; the seed is no difference."""
    new, old = dotted(mine), dotted(theirs)
    keys = sorted((new.keys() | old.keys()) - {"seed"})
    return {key: (_single(old.get(key)), _single(new.get(key))) for key in keys if new.get(key) != old.get(key)}


def _single(value: Any) -> bool | int | float | str | None:
    return value if isinstance(value, bool | int | float | str | None) else json.dumps(value)


def _factor_block(
    factor: Factor, families: Mapping[str, tuple[Any, Family]], baseline: Family, protocol: ProtocolParameters
) -> Block:
    """Every value of a factor in every metric, the configured one first or in its place on the scale."""
    values = [(factor.configured, factor.method, baseline)]
    values += [(value, family, members) for family, (value, members) in families.items()]
    if factor.is_numeric([value for value, _, _ in values]):
        values.sort(key=lambda one: one[0])
    return {
        "method": factor.method,
        "parameter": factor.parameter,
        "configured": factor.configured,
        "values": [
            {
                "value": value,
                "family": family,
                "metrics": {
                    m.name: _value_block(m, members, None if family == factor.method else baseline, protocol)
                    for m in _shown(baseline)
                },
            }
            for value, family, members in values
        ],
        "over_values": {
            m.name: _over_values([_by_seed(m, members) for _, _, members in values]) for m in _shown(baseline)
        },
    }


def _shown(baseline: Family) -> list[Metric]:
    """The metrics that the baseline has: the gold score only where there is one."""
    return [METRICS[name] for name in SHOWN if any(METRICS[name].value(run) is not None for run in baseline.values())]


def _by_seed(metric: Metric, members: Family) -> dict[int, float]:
    return {seed: value for seed, run in sorted(members.items()) if (value := metric.value(run)) is not None}


def _value_block(metric: Metric, members: Family, baseline: Family | None, protocol: ProtocolParameters) -> Block:
    """One value of a factor in one metric, and its difference to the configured value, seed by seed."""
    mine = _by_seed(metric, members)
    block = {**describe(metric, protocol.confidence), "per_seed": {str(s): v for s, v in mine.items()}}
    block |= summary(list(mine.values()))
    if baseline is None:
        return block
    theirs = _by_seed(metric, baseline)
    seeds = [seed for seed in mine if seed in theirs]
    pair = [mine[s] for s in seeds], [theirs[s] for s in seeds]
    return {
        **block,
        "difference": {
            **asdict(paired_difference(*pair, protocol.confidence)),
            "seeds": seeds,
            "method": "Student t over the differences of equal seeds",
            "of": "variant - configured",
            "unit_of_resampling": "seed",
            "generalises_to": NEW_SEEDS,
        },
        "p": paired_student(*pair).p,
    }


def _over_values(groups: Sequence[Mapping[int, float]]) -> Block:
    """How far the means of the values lie apart, beside how far the seeds of one value do: over common seeds."""
    seeds = sorted(set.intersection(*({*group} for group in groups)))
    values = [[group[seed] for seed in seeds] for group in groups]
    means = [fmean(one) for one in values if one]
    return {
        "seeds": seeds,
        "range_of_means": max(means) - min(means) if means else None,
        "sd_within": pooled_sd(values),
    }


def _adjust(factors: Sequence[Block]) -> None:
    """Holm's p over the variants of a section, metric by metric."""
    for name in SHOWN:
        blocks = [
            one["metrics"][name]
            for factor in factors
            for one in factor["values"]
            if "difference" in one["metrics"].get(name, {})
        ]
        for block, adjusted in zip(blocks, holm([block["p"] for block in blocks]), strict=True):
            block["holm_p"] = adjusted
