"""Sentences about a comparison: numbers and words come from it, here is only the grammar."""

from collections.abc import Mapping
from typing import Any

from gemma_alignment.report.formatting import bounds, name_of, number, percent, percent_bounds, signed
from gemma_alignment.report.verdict import judge_difference

Block = Mapping[str, Any]


def question(comparison: Block) -> str:
    """What the study asks; what is to be equal is named where every check says that it was."""
    protocol = comparison["protocol"]
    a, b = name_of(protocol["method_a"]), name_of(protocol["method_b"])
    asked = f"ow do {a} and {b} compare, and how sure can we be?"
    if not all(check["held"] for check in comparison["equal"]):
        return f"H{asked}"
    return f"On the same SFT model, the same frozen reward model, the same prompts, seeds and budget: h{asked}"


def headline(verdict: Block, protocol: Block) -> str:
    """The verdict as one sentence."""
    a, b = name_of(protocol["method_a"]), name_of(protocol["method_b"])
    phrase = verdict["phrase"]
    if verdict["word"] == "not resolved":
        if verdict.get("reason"):
            return f"Whether {a} or {b} is better is not resolved: {verdict['reason']}."
        return f"Whether {a} or {b} is better is not resolved at this n."
    if verdict["word"] == "not estimable":
        runs = "one seed" if verdict["n"] == 1 else "these runs"
        return f"Whether {a} or {b} is better cannot be estimated from {runs}."
    # Seeds alone carry what is not judged, and the reward model is what both were trained for.
    said_by = "" if verdict["primary"] else "By the reward model’s own score on these held-out prompts, "
    if verdict["word"] == "equivalent":
        return f"{said_by}{a} and {b} are equivalent within the margin."
    if verdict["word"] == "worse":  # say who is ahead
        a, b, phrase = b, a, phrase.replace("worse", "better").replace("lower", "higher")
    return f"{said_by}{a} is {_than(phrase, b)}."


def _than(phrase: str, other: str) -> str:
    """``better by more than the margin`` -> ``better than GRPO by more than the margin``."""
    word, _, rest = phrase.partition(" ")
    comma = "," if word.endswith(",") else ""
    return f"{word.rstrip(',')} than {other}{comma} {rest}".strip()


def evidence(comparison: Block) -> str:
    """What the verdict rests on."""
    verdict, protocol = comparison["verdict"], comparison["protocol"]
    a, b = name_of(protocol["method_a"]), name_of(protocol["method_b"])
    if verdict["estimate"] is None:
        return f"No number for it: {verdict['reason']}."
    if verdict["primary"]:
        pair = comparison["win_rates"][f"{protocol['method_a']}_vs_{protocol['method_b']}"]["crossed"]
        margin = protocol["margin"]
        digits = 0 if round(100 * margin, 6).is_integer() else 1
        text = f"{a} won {percent(verdict['estimate'])} of its comparisons with {b}, a tie counting one half"
        if verdict["low"] is None:
            over = pair["over_prompts"]
            text += f"; {percent_bounds(over['low'], over['high'])} over new prompts for these trained models"
        else:
            text += f"; {protocol['confidence']:.0%} interval {percent_bounds(verdict['low'], verdict['high'])}"
            text += ", for new prompts and for new seeds"
        return (
            f"{text} ({_count(pair['seeds'], 'seed')} × {pair['prompts']} prompts). 50% is no difference; "
            f"{percent(0.5 - margin, digits)} to {percent(0.5 + margin, digits)} is none that matters."
        )
    metric = comparison["metrics"][verdict["metric"]]
    as_they_are = " as they are" if comparison["judge"]["outdated"].get("verdicts") else ""
    return (
        f"The answers were not judged{as_they_are}, so the primary outcome, the head-to-head win rate, is open. "
        f"{metric['label']}, {a} − {b}: {signed(verdict['estimate'])} "
        f"{bounds(verdict['low'], verdict['high'])} ({_count(verdict['n'], 'seed')} a method; margin "
        f"{number(verdict['margin'], 2)}). The interval is for new training runs on these prompts, not for new prompts."
    )


def effect_sentence(comparison: Block) -> str | None:
    """The headline effect size with its interval and Cohen's words at both ends."""
    block = comparison["metrics"].get(comparison["protocol"]["effect_size_metric"])
    if block is None:
        return None
    effect, label = block["cohens_d"], block["label"].lower()
    if effect["d"] is None:
        return f"Cohen’s d of the {label} is not estimable: {effect['reason']}."
    said = reading(block, comparison["protocol"])  # the table's word: d alone would say more than Holm allows
    words = said if said.startswith("not ") else comparison["limits"]["magnitude"]
    least = block["power"]["least_d"]
    interval = bounds(effect["d_low"], effect["d_high"], 2)
    return (
        f"Cohen’s d of the {label} is {number(effect['d'], 2)} {interval}: {words}. "
        f"At {_count(block['power']['seeds'], 'seed')} a method, "
        f"{block['power']['power']:.0%} power begins at d = {number(least, 2)}."
    )


def reading(block: Block, protocol: Block) -> str:
    """What may be said of one metric: its interval decides, in the secondary family Holm's p and the gate too."""
    difference, holm = block["difference"], block.get("holm_p")
    verdict = judge_difference(difference["low"], difference["high"], 0.0, block["higher_is_better"])
    if verdict.word in ("not estimable", "not resolved"):
        return verdict.phrase
    if holm is not None and holm >= round(1.0 - protocol["confidence"], 12):
        return "not resolved after Holm"
    if "gate" in block:
        return f"not claimed, as the primary outcome is {block['gate']}"
    a, b = name_of(protocol["method_a"]), name_of(protocol["method_b"])
    if block["higher_is_better"] is None:
        return f"{a} higher" if difference["low"] > 0 else f"{b} higher"
    return f"{a} better" if verdict.word == "better" else f"{b} better"


def variants_note(protocol: Block) -> str:
    """How to read an ablation or a sweep."""
    return (
        "One parameter differs, the SFT and reward models, prompts, seeds and everything else are the same. "
        "Below each mean stand the single seeds, then the difference to the configured value, paired by seed, with its "
        f"{protocol['confidence']:.0%} Student t interval over seeds, and what it allows to say after Holm’s "
        "adjustment over the variants of this section, metric by metric. Nothing here enters the comparison above."
    )


def range_note() -> str:
    """What a range of means does not show."""
    return (
        "Means of more values lie further apart by chance alone: the range says something only where it is large "
        "beside the seed sd at one value."
    )


def drawdown_note() -> str:
    """What a drawdown is."""
    return (
        "A drawdown is how far a score lies below its best until then; the worst one of the training is shown. How "
        "little so few seeds say of an sd is what its interval shows. Nothing here is tested."
    )


def how_to_judge() -> str:
    """What to run for verdicts on answers that are already there."""
    return (
        "The answers are on disk, so they can be judged later without training again: set OPENAI_API_KEY "
        "and run the two commands below, with --env and data_root as in this study where it had its own."
    )


JUDGE_COMMANDS = "kedro run --pipeline=evaluation --params judge.kind=openai\nkedro run --pipeline=reporting"


def reproduce(protocol: Block) -> str:
    """The commands that make this study again."""
    methods = f"{protocol['method_a']},{protocol['method_b']}"
    seeds = ",".join(str(seed) for seed in protocol["seeds"])
    return f"make install\nkedro study --methods {methods} --seeds {seeds}\nkedro run --pipeline=reporting"


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"
