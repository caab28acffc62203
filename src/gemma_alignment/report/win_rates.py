"""From resolved comparisons to win rates: a seed at a time, and over seeds x prompts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal

import numpy as np

from gemma_alignment.parameters.reporting import ProtocolParameters
from gemma_alignment.report.comparing import NEW_PROMPTS, Block, crossed_block
from gemma_alignment.report.runs import SFT, RunKey, parse_key
from gemma_alignment.statistics.length_control import length_controlled
from gemma_alignment.statistics.power import prompts_needed
from gemma_alignment.statistics.win_rate import crossed, summarize

Result = Literal["win", "tie", "loss"]
Outcomes = Mapping[tuple[str, str, str], Result | None]
"""(system A, system B, prompt id) -> the result for A; None where a verdict is missing."""

BySeedAndPrompt = dict[int, dict[str, Result | None]]

POINTS: dict[str, float] = {"win": 1.0, "tie": 0.5, "loss": 0.0}
MIRROR: dict[Result, Result] = {"win": "loss", "tie": "tie", "loss": "win"}


def results_between(outcomes: Outcomes, a: str, b: str) -> BySeedAndPrompt:
    """The results of family ``a`` against family ``b`` (or the SFT model), by seed and prompt.

    Methods meet within a seed; the SFT model meets every seed. Rows that name the two the other
    way round are turned.
    """
    found: BySeedAndPrompt = {}
    for (first, second, prompt), result in outcomes.items():
        left, right = parse_key(first), parse_key(second)
        if left is None or right is None:
            continue
        if _meets(left, right, a, b):
            seed = left.seed
        elif _meets(right, left, a, b):
            seed, result = right.seed, None if result is None else MIRROR[result]  # noqa: PLW2901
        else:
            continue
        if seed is not None:
            found.setdefault(seed, {})[prompt] = result
    return found


def _meets(left: RunKey, right: RunKey, a: str, b: str) -> bool:
    return left.family == a and right.family == b and right.seed in (left.seed, None)


def win_rate_block(
    results: BySeedAndPrompt,
    names: tuple[str, str],
    lengths: Mapping[str, Mapping[str, int]],
    protocol: ProtocolParameters,
    generator: np.random.Generator,
    draws: int,
) -> Block | None:
    """Everything of one pair of systems; None where nothing of it was judged.

    Args:
        results: seed -> prompt -> result for the first of ``names``.
        names: the two families.
        lengths: run -> prompt -> characters of its answer.
        protocol: confidence, power, level.
        generator: of the bootstrap over prompts.
        draws: of that bootstrap.
    """
    per_seed = {str(seed): _one_seed(results[seed], protocol.confidence) for seed in sorted(results)}
    judged = sorted(s for s in results if per_seed[str(s)]["rate"] is not None)
    if not judged:
        return None
    prompts = [p for p in results[judged[0]] if all(results[s].get(p) is not None for s in judged)]
    block: Block = {
        "a": names[0],
        "b": names[1],
        "per_seed": per_seed,
        "total": {k: sum(one[k] for one in per_seed.values()) for k in ("wins", "ties", "losses", "missing")},
        "prompts_left_out_of_crossed": len({p for s in judged for p in results[s]}) - len(prompts),
        "crossed": None,
        "if_missing": _if_missing(results, protocol.confidence),
        "at_equal_length": None,
    }
    if prompts:
        scores = np.array([[POINTS[results[s][p] or ""] for p in prompts] for s in judged])
        rate = crossed(scores, protocol.confidence)
        block["crossed"] = crossed_block(rate, scores, protocol, generator, draws)
        needed = None if rate.rate is None else prompts_needed(rate.rate, protocol.power, protocol.alpha)
        block["prompts_needed_for_rate_seen"] = needed
        block["at_equal_length"] = _at_equal_length(scores, names, judged, prompts, lengths, protocol.confidence)
    return block


def _if_missing(results: BySeedAndPrompt, confidence: float) -> Block:
    """The crossed rate were all missing verdicts lost, or all won: the bounds of what they can do to a verdict.

    A prompt without a verdict in one seed is in no crossed rate, and those that a judge gives up on are no random
    part of all prompts. Every seed counts here, also one of which nothing was judged.
    """
    seeds = sorted(results)
    prompts = list(dict.fromkeys(p for s in seeds for p in results[s]))
    seen = np.array([[_points(results[s].get(p)) for p in prompts] for s in seeds])
    gone = np.isnan(seen)
    block: Block = {"missing": int(gone.sum()), "of": gone.size}
    if block["missing"]:
        for name, points in (("lost", POINTS["loss"]), ("won", POINTS["win"])):
            rate = crossed(np.where(gone, points, seen), confidence)
            block[name] = {
                "estimate": rate.rate,
                "seeds": rate.seeds,
                "over_prompts": {"low": rate.prompt_low, "high": rate.prompt_high},
                "over_seeds": {"low": rate.seed_low, "high": rate.seed_high},
                "jointly": {"low": rate.joint_low, "high": rate.joint_high},
                "reason": rate.reason,
            }
    return block


def _points(result: Result | None) -> float:
    return math.nan if result is None else POINTS[result]


def _at_equal_length(
    scores: np.ndarray,
    names: tuple[str, str],
    seeds: Sequence[int],
    prompts: Sequence[str],
    lengths: Mapping[str, Mapping[str, int]],
    confidence: float,
) -> Block:
    """The same scores, with what the difference in length explains taken out."""
    a, b = ([lengths.get(_run_name(name, seed), {}) for seed in seeds] for name in names)
    found = [(i, k) for i in range(len(seeds)) for k, p in enumerate(prompts) if p in a[i] and p in b[i]]
    outcomes = [float(scores[i, k]) for i, k in found]
    gaps = [a[i][prompts[k]] - b[i][prompts[k]] for i, k in found]
    return {
        **asdict(length_controlled(outcomes, gaps, [prompts[k] for _, k in found], confidence)),
        "unit_of_resampling": "prompt, with all its seeds",
        "generalises_to": NEW_PROMPTS,
        "method": "logistic fit in tanh of the length difference, clustered by prompt, Student t",
    }


def _run_name(family: str, seed: int) -> str:
    return RunKey(family, None if family == SFT else seed).name


def _one_seed(results: Mapping[str, Result | None], confidence: float) -> dict[str, Any]:
    values = list(results.values())
    summary = summarize(values.count("win"), values.count("tie"), values.count("loss"), confidence)
    missing = values.count(None)
    points = summary.wins + summary.ties / 2.0
    return {
        **asdict(summary),
        "missing": missing,
        "rate_if_missing_lost": points / len(values) if missing else None,
        "rate_if_missing_won": (points + missing) / len(values) if missing else None,
        "unit_of_resampling": "prompt",
        "method": "tie-aware score interval; Wilson for the decisive rate",
    }


def pairs_to_report(method_a: str, method_b: str) -> dict[str, tuple[str, str]]:
    """The three pairs of the report, by name."""
    return {
        f"{method_a}_vs_{method_b}": (method_a, method_b),
        f"{method_a}_vs_{SFT}": (method_a, SFT),
        f"{method_b}_vs_{SFT}": (method_b, SFT),
    }
