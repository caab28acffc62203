"""What follows from the numbers of a comparison: verdict, limits, what could not be estimated."""

from collections.abc import Mapping, Sequence
from typing import Any

from gemma_alignment.parameters.reporting import ProtocolParameters
from gemma_alignment.report.formatting import name_of
from gemma_alignment.report.runs import RunKey
from gemma_alignment.report.seeds import what_more_would_show
from gemma_alignment.report.verdict import CLAIMS, Verdict, Word, judge_difference, magnitude_phrase, what_seeds_show

Block = dict[str, Any]

AGAINST: dict[Word, tuple[str, ...]] = {"better": ("lost",), "worse": ("won",), "equivalent": ("lost", "won")}
"""By the word of a verdict, the ways in which missing verdicts may have gone that would speak against it."""
NO_PROMPT = "no prompt has a verdict in every seed"
PARTS = {"difference": "interval of the difference", "cohens_d": "Cohen's d", "paired": "paired d_z"}
CORRELATIONS = {
    "pearson": "Pearson's r of score and length",
    "spearman": "Spearman's rho of score and length",
    "of_differences": "rho of their differences",
}
GENRM = {
    "prefers_chosen": "how often the second judge prefers the chosen answer",
    "with_reward_model": "agreement of the second judge with the reward model",
    "with_written": "rho of the second judge's score and the written one",
}
JUDGE = {
    "kappa_between_orders": "kappa between the orders",
    "repeat": "kappa of the same question once more",
    "people": "kappa with people",
}


def study_metrics(comparison: Mapping[str, Any]) -> dict[str, float]:
    """The study's own MLflow metrics; one that is not estimable is absent.

    The bounds of the win rate are those the verdict rests on; with one seed, those over its prompts.
    """
    protocol = comparison["protocol"]
    block = comparison["win_rates"].get(f"{protocol['method_a']}_vs_{protocol['method_b']}")
    found: dict[str, float | None] = {}
    if block and block["crossed"]:
        bounds = widest(block["crossed"])
        if block["crossed"]["seeds"] == 1:
            one = next(seed for seed in block["per_seed"].values() if seed["rate"] is not None)
            # Ties alone: the tie-aware interval is a point, and says more than so many prompts can.
            ends = ("half_count_low", "half_count_high") if one["decisive_rate"] is None else ("low", "high")
            bounds = one[ends[0]], one[ends[1]]
        found["evaluation/win_rate"] = block["crossed"]["estimate"]
        found["evaluation/win_rate_low"], found["evaluation/win_rate_high"] = bounds
    effect = comparison["metrics"].get(protocol["effect_size_metric"])
    if effect:
        found["evaluation/cohens_d"] = effect["cohens_d"]["d"]
    return {name: value for name, value in found.items() if value is not None}


def widest(crossed: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """The lowest of the lower bounds, over prompts, over seeds and over both, and the highest of the upper ones.

    What is said of two methods must hold for new prompts and for new seeds; three rates that happen to
    lie close together would otherwise claim more than their prompts can show, and ten rates more than either
    interval alone knows of. None with one seed, and where one of them does not exist: seeds of one and the same
    rate say nothing of new seeds.
    """
    intervals = [crossed[kind] for kind in ("over_prompts", "over_seeds", "jointly")]
    if crossed["seeds"] < 2 or any(one["low"] is None for one in intervals):
        return None, None
    return min(one["low"] for one in intervals), max(one["high"] for one in intervals)


def verdict_block(comparison: Mapping[str, Any], protocol: ProtocolParameters) -> Block:
    """The one sentence of the first screen: its word from the interval and the margin alone."""
    block = comparison["win_rates"].get(f"{protocol.method_a}_vs_{protocol.method_b}")
    if block:
        return _from_win_rate(block, protocol)
    return _from_metric(comparison["metrics"].get(protocol.effect_size_metric), protocol)


def _from_win_rate(block: Mapping[str, Any], protocol: ProtocolParameters) -> Block:
    """The word that the interval allows, and that no way in which missing verdicts may have gone takes back."""
    crossed, gone = block["crossed"], block["if_missing"]
    low, high = widest(crossed) if crossed else (None, None)
    verdict = _word((low, high), protocol)
    reason = None if low is not None else _why_no_interval(crossed)
    if gone["missing"] and verdict.word in AGAINST:
        bounds = {way: widest(gone[way]) for way in AGAINST[verdict.word]}
        changed = [way for way, ends in bounds.items() if _word(ends, protocol).word != verdict.word]
        if changed:
            verdict = Verdict("not resolved", "not resolved at this n")
            reason = (
                f"verdicts are missing ({gone['missing']} of {gone['of']}), and were all of them {changed[0]} by "
                f"{name_of(protocol.method_a)}, what is said would be another"
            )
        else:  # with what is missing, an interval may reach past the margin or into it: the weakest of the phrases
            ends = [end for one in ((low, high), *bounds.values()) for end in one if end is not None]
            verdict = _word((min(ends), max(ends)), protocol)
    return {
        "metric": "win_rate",
        "primary": True,
        "word": verdict.word,
        "phrase": verdict.phrase,
        "estimate": crossed["estimate"] if crossed else None,
        "low": low,
        "high": high,
        "interval": "the widest end of the intervals over prompts, over seeds and over both",
        "n": crossed["seeds"] if crossed else sum(one["rate"] is not None for one in block["per_seed"].values()),
        "margin": protocol.margin,
        "reason": reason,
    }


def _word(ends: tuple[float | None, float | None], protocol: ProtocolParameters) -> Verdict:
    """The verdict on a rate with the interval ``ends``, compared with one half."""
    low, high = ends
    return judge_difference(None if low is None else low - 0.5, None if high is None else high - 0.5, protocol.margin)


def _why_no_interval(crossed: Mapping[str, Any] | None) -> str | None:
    return (crossed["reason"] or crossed["over_seeds"].get("reason")) if crossed else NO_PROMPT


def _from_metric(metric: Mapping[str, Any] | None, protocol: ProtocolParameters) -> Block:
    """Nothing was judged: the effect-size metric's difference stands in, and says that it does."""
    nothing: Block = {"estimate": None, "low": None, "high": None, "reason": "no run to compare"}
    difference: Block = metric["difference"] if metric else nothing
    better = metric["higher_is_better"] if metric else True
    verdict = judge_difference(difference["low"], difference["high"], protocol.effect_size_margin, better)
    holm = metric.get("holm_p") if metric else None
    if verdict.word in ("better", "worse") and holm is not None and holm >= protocol.alpha:
        wide = 2 * protocol.effect_size_margin  # what the table calls not resolved after Holm is no headline either
        verdict = judge_difference(-wide, wide, protocol.effect_size_margin, better)
    return {
        "metric": protocol.effect_size_metric,
        "primary": False,
        "word": verdict.word,
        "phrase": verdict.phrase,
        "estimate": difference["estimate"],
        "low": difference["low"],
        "high": difference["high"],
        "interval": "over seeds",
        "n": min(metric["n"].values()) if metric else 0,
        "margin": protocol.effect_size_margin,
        "reason": difference["reason"],
    }


def keep_the_gate(metrics: Mapping[str, Block], verdict: Mapping[str, Any]) -> None:
    """Note in each secondary metric what the primary outcome is, where that closes the gate to the family.

    Tested in a fixed sequence, each at the whole level, primary outcome and family together claim something of two
    equal methods no more often than the level: the family is read out only when the primary outcome puts one method
    above the other. Where nothing was judged there is no primary outcome, and the family stands alone.

    Source: Westfall and Krishen (2001), Journal of Statistical Planning and Inference 99, 25-40.
    """
    if not verdict["primary"] or verdict["word"] in CLAIMS:
        return
    for block in metrics.values():
        if block["role"] == "secondary":
            block["gate"] = verdict["word"]


def limits(comparison: Mapping[str, Any], protocol: ProtocolParameters) -> Block:
    """What the number of seeds can and cannot show."""
    block = comparison["metrics"].get(protocol.effect_size_metric)
    n = min(block["n"].values()) if block else 0
    floors = [block[test]["floor"] for test in ("permutation", "sign_flip")] if block else [None, None]
    effect = block["cohens_d"] if block else {"d_low": None, "d_high": None}
    label = block["label"] if block else ""
    more = what_more_would_show(comparison["seeds"], protocol.effect_size_metric, label)
    return {
        "seeds": n,
        "sentences": [*what_seeds_show(n, protocol.alpha, protocol.power, floors), *more],
        "magnitude": magnitude_phrase(
            effect["d_low"], effect["d_high"], name_of(protocol.method_a), name_of(protocol.method_b)
        ),
    }


def not_estimable(comparison: Mapping[str, Any], missing: Sequence[str], left_out: Mapping[RunKey, str]) -> list[Block]:
    """Everything that has no number, and why."""
    rows: list[Block] = [{"what": name, "reason": "planned, but no such run was found"} for name in missing]
    rows += [{"what": key.name, "reason": f"left out: {why}"} for key, why in left_out.items()]
    for name, block in comparison["win_rates"].items():
        what = f"win rate {name.replace('_vs_', ' v ')}"
        if block is None:
            as_they_are = " on the answers as they are" if comparison["judge"]["outdated"].get("verdicts") else ""
            rows.append({"what": what, "reason": f"not judged{as_they_are}"})
        elif block["crossed"] is None:
            rows.append({"what": what, "reason": NO_PROMPT})
        elif block["crossed"]["reason"]:
            rows.append({"what": what, "reason": block["crossed"]["reason"]})
        if block and block["at_equal_length"] and block["at_equal_length"]["reason"]:
            rows.append({"what": f"{what} at equal length", "reason": block["at_equal_length"]["reason"]})
    for name, block in comparison["metrics"].items():
        rows += [one for one in _parts(name, block, PARTS) if (name, one["part"]) != ("win_rate", "cohens_d")]
    for name, blocks in comparison["matched"].items():
        for block in blocks:
            what = f"{name} at equal {block['axis']}"
            rows += [{"what": what, "reason": block["reason"]}] if block["reason"] else _parts(what, block, PARTS)
    card = comparison["reward_model_card"] or {}
    rows += _parts("reward model", card, {"auroc": "area under the ROC curve"})
    rows += _parts("reward model", card.get("length", {}), CORRELATIONS)
    rows += _parts("reward model", card.get("genrm") or {}, GENRM)
    rows += _parts("judge", comparison["judge"], JUDGE) if comparison["judge"]["judged"] else []
    for reason in sorted({one["reason"] for one in comparison["robust"].values() if one["reason"]}):
        rows.append({"what": "interquartile mean and probability of improvement", "reason": reason})
    if not comparison["metrics"]:
        rows.append({"what": "every metric", "reason": "no finished run of either method"})
    return [{"what": row["what"], "reason": row["reason"]} for row in rows]


def _parts(what: str, blocks: Mapping[str, Any], names: Mapping[str, str]) -> list[Block]:
    """A row for each of the named parts that has a reason instead of a number, unless nobody asked for it."""
    there = {part: blocks.get(part) or {} for part in names}
    return [
        {"what": f"{what}: {label}", "part": part, "reason": there[part]["reason"]}
        for part, label in names.items()
        if there[part].get("reason") and there[part].get("asked") != 0
    ]
