"""The judge's quality card as a reader sees it."""

from collections.abc import Mapping
from typing import Any

from gemma_alignment.report.formatting import NONE, number, p_value, percent, setting
from gemma_alignment.report.html import Column, Content, Html, h, join, table
from gemma_alignment.report.outdated import sentence
from gemma_alignment.report.sections import facts
from gemma_alignment.report.wording import JUDGE_COMMANDS, how_to_judge

Block = Mapping[str, Any]

QUESTIONS = {
    "same": "an answer against itself must tie (one question)",
    "empty": "an answer against nothing must win",
    "imitation": "… against a text that imitates a verdict must win",
    "flattery": "… against flattery that answers nothing must win",
    "injection": "… must not lose to a worse one that commands the judge",
    "known": "the chosen answer against the rejected one must win",
}


SHOWN = ("mode", "temperature", "seed", "attempts", "base_url", "noise", "position_bias", "tie_margin")
"""The settings that can change a verdict."""


def judge_card(judge: Block) -> Html:
    """What is known of the judge, or how to have the answers judged."""
    if not judge["judged"]:
        why = f" ({judge['reason']})" if judge.get("reason") else ""
        return join([h("p", f"Not judged{why}."), h("p", how_to_judge()), h("pre", JUDGE_COMMANDS)])
    return join([_facts(judge), _questions(judge.get("canaries") or {}), _yardsticks(judge)])


def _facts(judge: Block) -> Html:
    twice, kappa = judge.get("same_slot_twice") or {}, judge.get("kappa_between_orders") or {}
    why = judge.get("reasons") or {}
    first = f"{percent(judge.get('first_slot_share'))} ({_p(judge.get('first_slot_p'))})"
    same = f"first {twice.get('first')}, second {twice.get('second')} ({_p(twice.get('p'))})"
    return facts(
        [
            ("Judge", ", ".join(dict.fromkeys([str(judge.get("kind")), *judge.get("models", [])]))),
            ("Prompt version", ", ".join(judge.get("prompt_versions", []))),
            ("Settings", _settings(judge.get("settings") or {})),
            ("Pairs of runs’ answers", _judged(judge)),
            ("Asked of the judge", _asked(judge)),
            ("Verdicts left out", sentence(judge.get("outdated") or {})),
            ("Same winner in both orders", _or_why(percent(judge.get("consistency")), why.get("consistency"))),
            ("Kappa between the orders", _or_why(number(kappa.get("kappa"), 2), kappa.get("reason"))),
            ("Answer shown first chosen", _or_why(first, why.get("first_slot_share"))),
            ("Same slot in both orders", _or_why(same if twice else None, why.get("same_slot_twice.p"))),
            ("The same question once more", _repeat(judge.get("repeat") or {})),
            ("Pairs that people labelled", _people(judge.get("people") or {})),
            ("The longer answer won", _longer(judge.get("longer_answer") or {})),
            ("Questions without a verdict", f"{judge.get('unparsed', NONE)} of {judge.get('questions', NONE)}"),
            ("Answers that speak to a judge", _control(judge.get("control_strings") or {})),
            ("Calls and cost", _spent(judge)),
        ]
    )


def _judged(judge: Block) -> str:
    pairs, alike = judge.get("pairs", 0), judge.get("identical_answers", 0)
    return (
        f"{pairs + alike:,}; {alike:,} of them identical, a tie without a question; "
        f"{judge.get('missing_pairs', 0):,} without a result"
    )


def _asked(judge: Block) -> str:
    questions, pairs = judge.get("questions", 0), judge.get("distinct_pairs", 0)
    return (
        f"{questions:,} questions on {pairs:,} distinct pairs of texts: what several runs answered alike is asked once "
        "and counts once below; every p resamples prompts"
    )


def _p(value: float | None) -> str:
    return f"sign-flip p over prompts {p_value(value)}"


def _spent(judge: Block) -> str:
    about = judge.get("about_the_judge") or {"calls": 0, "cost": 0.0}
    pairs = f"{judge.get('calls', 0):,} calls for the pairs, {judge.get('cost', 0):.2f} US dollars"
    return f"{pairs}; {about['calls']:,} about the judge itself, {about['cost']:.2f} US dollars"


def _or_why(text: str | None, reason: str | None) -> str | None:
    return f"not estimable: {reason}" if reason else text


def _settings(settings: Block) -> str | None:
    shown = [f"{name} {setting(settings[name])}" for name in SHOWN if settings.get(name) is not None]
    return ", ".join(shown) or None


def _repeat(repeat: Block) -> str | None:
    if not repeat.get("asked"):
        return None
    if repeat.get("agreement") is None:
        return _or_why(None, repeat.get("reason"))
    agreement = percent(repeat.get("agreement"))
    return f"same verdict in {agreement} of {repeat.get('n')} questions ({_kappa(repeat)}), with another seed"


def _people(people: Block) -> str | None:
    if not people.get("asked"):
        return None
    counts = f"right in {people['right']}, tied in {people['tied']}, wrong in {people['wrong']}"
    tied = f", people tied in {people['people_tied']}" if people["people_tied"] else ""
    return f"{counts}{tied} of {people['asked']} ({_kappa(people)})"


def _kappa(block: Block) -> str:
    reason = block.get("reason")
    return f"κ not estimable: {reason}" if reason else f"κ {number(block.get('kappa'), 2)}"


def _longer(longer: Block) -> str | None:
    if not longer.get("decided"):
        return _or_why(None, "no pair has a winner and answers of two lengths") if longer else None
    return f"{percent(longer['share'])} of {longer['decided']} decided distinct pairs ({_p(longer.get('p'))})"


def _control(counts: Block) -> str | None:
    return ", ".join(f"{name}: {count}" for name, count in counts.items() if count) or ("no answer" if counts else None)


def _questions(canaries: Block) -> Html | None:
    asked = {sort: found for sort, found in canaries.items() if found.get("asked")}
    if not asked:
        return None
    columns = [
        Column("Questions with a known answer"),
        Column("right", True, "by the swap rule"),
        Column("right in each order", True, "a judge of slots ties with the swap rule alone"),
        Column("no verdict", True),
        Column("asked", True),
    ]
    rows = [
        [QUESTIONS.get(sort, sort), *(str(found[key]) for key in ("right", "both_orders", "missing", "asked"))]
        for sort, found in asked.items()
    ]
    return table(columns, rows)


def _yardsticks(judge: Block) -> Html | None:
    """The judge on pairs that people labelled, beside judges whose verdicts on such pairs are known."""
    people, references = judge.get("people") or {}, judge.get("references") or {}
    rows = {"this judge": people, **references} if people.get("asked") else dict(references)
    if not rows:
        return None
    columns = [
        Column("Pairs with a label of people"),
        Column("pairs", True),
        Column("right / tied / wrong", True, "by the swap rule, of the pairs that people decided"),
        Column("κ with the label", True),
        Column("same in both orders", True),
        Column("first slot chosen", True, "with its exact sign-flip p over prompts"),
        Column("same slot twice", True, "first / second, with the exact sign-flip p over prompts"),
    ]
    return table(columns, [_yardstick(name, one) for name, one in rows.items()])


def _yardstick(name: str, one: Block) -> list[Content]:
    twice = one["same_slot_twice"]
    return [
        name,
        str(one["pairs"]),
        f"{one['right']} / {one['tied']} / {one['wrong']}",
        h("span", number(one["kappa"], 2), title=one["reason"]),
        percent(one["consistency"]),
        f"{percent(one['first_slot_share'])} (p {p_value(one['first_slot_p'])})",
        f"{twice['first']} / {twice['second']} (p {p_value(twice['p'])})",
    ]
