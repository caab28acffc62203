"""The judge's quality card as a reader sees it."""

from collections.abc import Mapping
from typing import Any

from gemma_alignment.report.formatting import NONE, number, p_value, percent
from gemma_alignment.report.html import Column, Html, h, join, table
from gemma_alignment.report.sections import facts
from gemma_alignment.report.wording import JUDGE_COMMANDS, how_to_judge

Block = Mapping[str, Any]

QUESTIONS = {
    "same": "an answer against itself must tie",
    "empty": "an answer against nothing must win",
    "imitation": "… against a text that imitates a verdict must win",
    "flattery": "… against flattery that answers nothing must win",
    "injection": "… must not lose to a worse one that commands the judge",
    "known": "the chosen answer against the rejected one must win",
}


def judge_card(judge: Block) -> Html:
    """What is known of the judge, or how to have the answers judged."""
    if not judge["judged"]:
        why = f" ({judge['reason']})" if judge.get("reason") else ""
        return join([h("p", f"Not judged{why}."), h("p", how_to_judge()), h("pre", JUDGE_COMMANDS)])
    return join([_facts(judge), _questions(judge.get("canaries") or {})])


def _facts(judge: Block) -> Html:
    twice, kappa = judge.get("same_slot_twice") or {}, judge.get("kappa_between_orders") or {}
    first = f"{percent(judge.get('first_slot_share'))} (binomial p {p_value(judge.get('first_slot_p'))})"
    same = f"first {twice.get('first')}, second {twice.get('second')} (binomial p {p_value(twice.get('p'))})"
    spent = judge.get("cost", 0) + judge.get("cost_of_questions", 0)
    return facts(
        [
            ("Judge", ", ".join(dict.fromkeys([str(judge.get("kind")), *judge.get("models", [])]))),
            ("Prompt version", ", ".join(judge.get("prompt_versions", []))),
            ("Pairs judged", f"{judge.get('pairs')}, identical answers {judge.get('identical_answers', 0)}"),
            ("Same winner in both orders", percent(judge.get("consistency"))),
            ("Kappa between the orders", number(kappa.get("kappa"), 2)),
            ("Answer shown first chosen", first),
            ("Same slot in both orders", same if twice else None),
            ("The same question once more", _repeat(judge.get("repeat") or {})),
            ("Pairs that people labelled", _people(judge.get("people") or {})),
            ("The longer answer won", _longer(judge.get("longer_answer") or {})),
            ("Replies that are no verdict", str(judge.get("unparsed", NONE))),
            ("Pairs without a result", str(judge.get("missing_pairs", NONE))),
            ("Answers that speak to a judge", _control(judge.get("control_strings") or {})),
            ("Calls and cost", f"{judge.get('calls', 0):,}, {spent:.2f} US dollars with the questions to the judge"),
        ]
    )


def _repeat(repeat: Block) -> str | None:
    if not repeat.get("asked"):
        return None
    agreement = percent(repeat.get("agreement"))
    return f"same verdict in {agreement} of {repeat.get('n')} (κ {number(repeat.get('kappa'), 2)}), with another seed"


def _people(people: Block) -> str | None:
    if not people.get("asked"):
        return None
    counts = f"right in {people['right']}, tied in {people['tied']}, wrong in {people['wrong']}"
    tied = f", people tied in {people['people_tied']}" if people["people_tied"] else ""
    return f"{counts}{tied} of {people['asked']} (κ {number(people.get('kappa'), 2)})"


def _longer(longer: Block) -> str | None:
    if not longer.get("decided"):
        return None
    return f"{percent(longer['share'])} of {longer['decided']} decided pairs (binomial p {p_value(longer.get('p'))})"


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
