"""One metric, two methods, a few seeds: every number that the report prints of it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from gemma_alignment.parameters.reporting import ProtocolParameters
from gemma_alignment.report.metrics import Metric
from gemma_alignment.report.seeds import why_none
from gemma_alignment.statistics import tests
from gemma_alignment.statistics.effect_size import cohens_d, paired_effect
from gemma_alignment.statistics.intervals import paired_difference, t_interval, welch_difference
from gemma_alignment.statistics.multiplicity import holm
from gemma_alignment.statistics.power import least_effect, seeds_needed
from gemma_alignment.statistics.win_rate import CrossedRate, crossed_mean, prompt_bootstrap

BySeed = Mapping[int, float]
Block = dict[str, Any]

NEW_SEEDS = "new seeds, these prompts"
NEW_PROMPTS = "new prompts, these trained models"


def compare_metric(
    metric: Metric, a: BySeed, b: BySeed, protocol: ProtocolParameters, generator: np.random.Generator
) -> Block:
    """Method A against method B in one metric, one number a seed on each side.

    Everything of the independent groups uses all seeds; the paired part those that both have.
    """
    names = (protocol.method_a, protocol.method_b)
    left, right = [a[s] for s in sorted(a)], [b[s] for s in sorted(b)]
    common = sorted(set(a) & set(b))
    paired = ([a[s] for s in common], [b[s] for s in common])
    effect = cohens_d(left, right, protocol.confidence)
    return {
        **describe(metric, protocol.confidence),
        "unit_of_resampling": "seed",
        "generalises_to": NEW_SEEDS,
        "n": {names[0]: len(left), names[1]: len(right)},
        "per_seed": {
            name: {str(s): values[s] for s in sorted(values)} for name, values in zip(names, (a, b), strict=True)
        },
        "mean": {name: _mean(values) for name, values in zip(names, (left, right), strict=True)},
        "sd": {name: _sd(values) for name, values in zip(names, (left, right), strict=True)},
        "difference": {
            **asdict(welch_difference(left, right, protocol.confidence)),
            "method": "Welch interval",
            "of": f"{names[0]} - {names[1]}",
        },
        "welch": asdict(tests.welch(left, right)),
        "cohens_d": {**asdict(effect), "method": "noncentral t interval, pooled sd"},
        "paired": {
            "seeds": common,
            **asdict(paired_effect(*paired, protocol.confidence)),
            "difference": asdict(paired_difference(*paired, protocol.confidence)),
            "method": "noncentral t interval; another scale than d",
        },
        "permutation": asdict(tests.permutation(left, right, generator)),
        "sign_flip": asdict(tests.sign_flip(*paired, generator)),
        "power": power_block(min(len(left), len(right)), effect.d, protocol),
    }


def compare_to_half(metric: Metric, rates: BySeed, protocol: ProtocolParameters) -> Block:
    """The head-to-head win rate: one rate a seed, compared with one half.

    The two methods' rates of a seed add up to 1, so they are no two samples: d does not apply,
    d_z and the t interval of rate - 1/2 do.
    """
    seeds = sorted(rates)
    values = [rates[s] for s in seeds]
    half = [0.5] * len(values)
    excess = t_interval([v - 0.5 for v in values], protocol.confidence)
    not_two_samples = "the two methods' rates of a seed add up to 1: no two samples; see paired"
    return {
        **describe(metric, protocol.confidence),
        "unit_of_resampling": "seed",
        "generalises_to": NEW_SEEDS,
        "n": {protocol.method_a: len(values)},
        "per_seed": {protocol.method_a: {str(s): rates[s] for s in seeds}},
        "mean": {protocol.method_a: _mean(values)},
        "sd": {protocol.method_a: _sd(values)},
        "difference": {
            **asdict(excess),
            "method": "Student t over seeds",
            "of": f"{protocol.method_a} - 1/2",
        },
        "welch": asdict(tests.paired_student(values, half)),
        "cohens_d": {**asdict(cohens_d([], [])), "reason": not_two_samples, "method": "none"},
        "paired": {
            "seeds": seeds,
            **asdict(paired_effect(values, half, protocol.confidence)),
            "difference": asdict(excess),
            "method": "noncentral t interval of (rate - 1/2)",
        },
        "permutation": asdict(replace(tests.permutation([], []), reason=not_two_samples)),
        "sign_flip": asdict(tests.sign_flip(values, half)),
        "power": {**power_block(0, None, protocol), "reason": not_two_samples},
    }


def describe(metric: Metric, confidence: float) -> Block:
    """What a reader must know of a metric before its numbers."""
    return {
        "label": metric.label,
        "unit": metric.unit,
        "source": metric.source,
        "higher_is_better": metric.higher_is_better,
        "confidence": confidence,
    }


def power_block(n: int, d: float | None, protocol: ProtocolParameters) -> Block:
    """What n seeds a method can find, and how many the d seen here would need."""
    alpha = protocol.alpha
    needed = None if d is None else seeds_needed(d, protocol.power, alpha)
    reason = None
    if n < 2:
        reason = f"n = {n}: at least 2 seeds a method are needed"
    elif needed is None:
        reason = "no d was seen" if d is None else why_none(d)
    return {
        "power": protocol.power,
        "alpha": alpha,
        "seeds": n,
        "least_d": least_effect(n, protocol.power, alpha) if n > 1 else None,
        "seeds_needed_for_d_seen": needed,
        "reason": reason,
    }


def over_prompts(
    a: Mapping[int, Mapping[str, float]],
    b: Mapping[int, Mapping[str, float]],
    protocol: ProtocolParameters,
    generator: np.random.Generator,
    draws: int,
) -> Block | None:
    """The mean difference over prompts, both methods on the same ones: seed -> prompt -> value.

    The standard error comes from each prompt's difference. None where no seed has both methods.
    """
    seeds = sorted(set(a) & set(b))
    if not seeds:
        return None
    prompts = sorted(set.intersection(*({*a[s]} & {*b[s]} for s in seeds)))
    if not prompts:
        return None
    differences = np.array([[a[s][p] - b[s][p] for p in prompts] for s in seeds])
    return crossed_block(crossed_mean(differences, protocol.confidence), differences, protocol, generator, draws)


def crossed_block(
    rate: CrossedRate,
    scores: np.ndarray,
    protocol: ProtocolParameters,
    generator: np.random.Generator,
    draws: int,
) -> Block:
    """A crossed mean with its intervals, each labelled by what it generalises to."""
    bootstrap = prompt_bootstrap(scores, generator, draws, protocol.confidence)
    return {
        "estimate": rate.rate,
        "seeds": rate.seeds,
        "prompts": rate.prompts,
        "per_seed": list(rate.per_seed),
        "over_prompts": {
            "low": rate.prompt_low,
            "high": rate.prompt_high,
            "se": rate.se_prompt,
            "unit_of_resampling": "prompt, with all its seeds",
            "generalises_to": NEW_PROMPTS,
            "method": "clustered by prompt, Student t",
        },
        "over_prompts_bootstrap": {
            "low": bootstrap.low,
            "high": bootstrap.high,
            "unit_of_resampling": "prompt, with all its seeds",
            "generalises_to": NEW_PROMPTS,
            "method": f"percentile bootstrap, {draws} draws",
            "reason": bootstrap.reason,
        },
        "over_seeds": {
            "low": rate.seed_low,
            "high": rate.seed_high,
            "df": rate.seed_df,
            "se": rate.se_seed,
            "unit_of_resampling": "seed",
            "generalises_to": NEW_SEEDS,
            "method": "Student t over the seeds",
        },
        "over_both": {
            "low": rate.two_way_low,
            "high": rate.two_way_high,
            "se": rate.se_two_way,
            "unit_of_resampling": "prompt and seed",
            "generalises_to": "new prompts and new seeds",
            "method": "two-way clustered, Student t on the smaller df; wide",
        },
        "jointly": {
            "low": rate.joint_low,
            "high": rate.joint_high,
            "df": rate.joint_df,
            "unit_of_resampling": "prompt and seed",
            "generalises_to": "new prompts and new seeds",
            "method": "the two clustered variances added, Student t on Satterthwaite's df",
        },
        "reason": rate.reason,
    }


def adjust_family(metrics: Mapping[str, Block], family: Sequence[str]) -> list[Block]:
    """Holm's table of the secondary family, from the Welch p of each metric that could be tested.

    The permutation p cannot go in: its floor is above what Holm asks for at few seeds.
    """
    members = [name for name in family if name in metrics]
    p_values = [metrics[name]["welch"]["p"] for name in members]
    return [
        {
            "metric": name,
            "label": metrics[name]["label"],
            "p": p,
            "holm_p": adjusted,
            "reason": None if p is not None else metrics[name]["welch"]["reason"],
        }
        for name, p, adjusted in zip(members, p_values, holm(p_values), strict=True)
    ]


def summary(values: Sequence[float]) -> Block:
    """How many values, their mean and their sd."""
    return {"n": len(values), "mean": _mean(values), "sd": _sd(values)}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _sd(values: Sequence[float]) -> float | None:
    return float(np.std(values, ddof=1)) if len(values) > 1 else None
