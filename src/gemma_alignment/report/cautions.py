"""What takes the ground from under a comparison, said beside its verdict."""

from collections.abc import Mapping, Sequence
from typing import Any

from gemma_alignment.report.formatting import name_of, number, percent, percent_bounds
from gemma_alignment.report.judge_section import QUESTIONS
from gemma_alignment.report.matched import KL
from gemma_alignment.report.metrics import METRICS
from gemma_alignment.report.outdated import sentence

Block = Mapping[str, Any]
QUALITY = "eval/gold_mean"
READ_AT = ("iteration", "budget/responses")
"""The axes at which every run ends at the same place: the verdict itself is read there, so they are no other budget."""
CANARIES_FAILED = 0.1
"""The share of a sort of questions with a known answer that a judge may get wrong without a word about it."""
CONSISTENT = 0.5
"""A judge that tosses a coin for each order names the same answer twice in half of the pairs."""


def cautions(comparison: Block) -> list[str]:
    """One sentence for each: verdicts on other answers or missing, what was not equal, a judge that fails questions
    with a known answer, a verdict that turns round at another equal budget, a reward model at chance, an SFT that did
    not learn, a quality that fell."""
    outdated = sentence(comparison["judge"]["outdated"])
    return [
        *([f"{outdated}."] if outdated else []),
        *_missing(comparison["win_rates"]),
        *_equal(comparison["equal"]),
        *_judge(comparison["judge"]),
        *_budgets(comparison),
        *_reward_model(comparison["reward_model"]),
        *_sft(comparison["sft"]),
        *_quality(comparison),
    ]


def _missing(rates: Block) -> list[str]:
    """How many verdicts no rate knows of, pair by pair, and where the headline's rate lies whatever they were."""
    there = {name: block["if_missing"] for name, block in rates.items() if block and block["if_missing"]["missing"]}
    if not there:
        return []
    pairs = {name: " v ".join(map(name_of, name.split("_vs_"))) for name in there}
    shares = [
        f"{one['missing']} of {one['of']} on {pairs[name]} ({percent(one['missing'] / one['of'])})"
        for name, one in there.items()
    ]
    name, one = next(iter(there.items()))
    lost, won = (percent(one[way]["estimate"]) for way in ("lost", "won"))
    return [
        f"Verdicts are missing: {', '.join(shares)}. A prompt without a verdict in one seed is left out of the rate "
        f"over seeds. Were all of those on {pairs[name]} lost, that rate would be {lost}; were all of them won, {won}."
    ]


def _equal(checks: Sequence[Block]) -> list[str]:
    """What the protocol holds equal and was not, each by itself; then what nobody recorded, all together."""
    named = [(one["held"], f"{one['check']} ({one['detail']})" if one["detail"] else one["check"]) for one in checks]
    said = [f"Not held: {name}. The verdict is read as if it had been." for held, name in named if held is False]
    unknown = [name for held, name in named if held is None]
    return [*said, *([f"Not known to be equal: {', '.join(unknown)}."] if unknown else [])]


def _judge(judge: Block) -> list[str]:
    """The sorts of questions with a known answer that too many replies get wrong, and orders that hardly agree."""
    if not judge.get("judged"):
        return []
    failed = [
        f"{QUESTIONS.get(sort, sort).replace('…', 'an answer')}: {found['asked'] - found['right']} of {found['asked']}"
        for sort, found in (judge.get("canaries") or {}).items()
        if found["asked"] - found["right"] > CANARIES_FAILED * found["asked"]
    ]
    said = []
    if failed:
        said.append(
            f"The judge fails more than {percent(CANARIES_FAILED, 0)} of a sort of questions with a known answer "
            f"({'; '.join(failed)}): its verdicts are worth as little."
        )
    same = judge.get("consistency")
    if same is not None and same < CONSISTENT:
        said.append(
            f"The judge names the same answer in both orders for {percent(same)} of the pairs, fewer than "
            f"{percent(CONSISTENT, 0)}: where an answer stood decides more than what it says."
        )
    return said


def _budgets(comparison: Block) -> list[str]:
    """Where another equal budget would turn a verdict round, or would tell two equivalent methods apart."""
    winner = {"better": 1, "worse": -1, "equivalent": 0}.get(comparison["verdict"]["word"])
    if winner is None:
        return []
    protocol = comparison["protocol"]
    sides = {1: protocol["method_a"], -1: protocol["method_b"]}
    said = []
    for side, family in sides.items():
        found = [_higher(METRICS[name].label, blocks, side, winner) for name, blocks in comparison["matched"].items()]
        if side != winner and (parts := [one for one in found if one]):
            said.append(f"{name_of(family)} has {', and '.join(parts)}. ")
    if not said:
        return []
    return [
        f"The verdict is read at equal iterations and responses. {''.join(said)}That is described, not tested: see “At "
        "equal budgets”."
    ]


def _higher(label: str, blocks: Sequence[Block], side: int, winner: int) -> str | None:
    """At which budgets, other than those of the verdict, the metric is higher on one side.

    Against a winner an estimate counts, as there is one word too many for it; equivalent methods have estimates on
    An estimate speaks against a winner. Equivalent methods have estimates on both sides, so there an interval must.
    """
    there = [b for b in blocks if b["axis"] not in READ_AT and b["difference"]["estimate"] is not None]
    found = [b for b in there if side * b["difference"]["estimate"] > 0]
    beyond = [b for b in found if b["difference"]["low"] is not None and _is_beyond(b["difference"], side)]
    found = found if winner else beyond
    if not found:
        return None
    if beyond:
        known = f"the interval of the difference leaves out 0 at equal {_listed(beyond)}"
    elif all(b["difference"]["low"] is None for b in found):
        known = "the difference has no interval"
    else:
        known = "no interval of the difference leaves out 0"
    return f"the higher {label.lower()} at equal {_listed(found)} ({known})"


def _is_beyond(difference: Block, side: int) -> bool:
    return bool(difference["low"] > 0 if side > 0 else difference["high"] < 0)


def _listed(blocks: Sequence[Block]) -> str:
    names = [block["label"][:1].lower() + block["label"][1:] if block["axis"] != KL else "KL" for block in blocks]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _reward_model(found: Block) -> list[str]:
    low, high = found.get("reward_model/accuracy_low"), found.get("reward_model/accuracy_high")
    if low is None or low > 0.5:
        return []
    share = f"{percent(found['reward_model/accuracy'])} of held-out pairs, {percent_bounds(low, high)}"
    return [
        f"The reward model is not shown to beat chance ({share}): what both methods were trained for says "
        "little about what the preferences mean."
    ]


def _sft(found: Block) -> list[str]:
    before, after = found.get("sft/perplexity_before"), found.get("sft/perplexity_after")
    if before is None or after is None or after < before:
        return []
    return [
        f"Supervised fine-tuning raised the perplexity of held-out chosen responses, from {number(before)} to "
        f"{number(after)}: the model that both methods start from did not learn to answer."
    ]


def _quality(comparison: Block) -> list[str]:
    start, block = comparison["baseline"].get(QUALITY), comparison["metrics"].get(QUALITY)
    if start is None or block is None:
        return []
    fell = {name: mean for name, mean in block["mean"].items() if mean is not None and mean < start}
    return [
        f"Under {name_of(name)} the true quality fell, from {number(start)} to {number(mean)} of 10 on average: "
        "the reward model was followed, not what it stands for."
        for name, mean in fell.items()
    ]
