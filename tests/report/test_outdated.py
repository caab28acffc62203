"""Verdicts count for the answers that were judged, and for no others under the same name."""

import copy
import re

from fake_study import PROTOCOL, REPORTING, fake_study

from gemma_alignment.judging.client import Request
from gemma_alignment.judging.current import Outdated, current_verdicts
from gemma_alignment.pipelines.reporting.nodes import compare, render_report

ANSWERS = {
    "ppo/seed=1": {"p": ("ask", "one"), "q": ("ask more", "two")},
    "sft": {"p": ("ask", "three"), "q": ("ask more", "four")},
    "grpo/seed=1": {"p": ("ask", "five")},
}


def row(a, b, prompt, order):
    (asked, first), (_, second) = ANSWERS[a][prompt], ANSWERS[b][prompt]
    shown = (first, second) if order == "ab" else (second, first)
    names = {"system_a": a, "system_b": b, "prompt_id": prompt, "order": order}
    return {**names, "content_key": Request(asked, *shown).content_key, "verdict": "first"}


ROWS = [
    *(row("ppo/seed=1", "sft", prompt, order) for prompt in "pq" for order in ("ab", "ba")),
    *(row("ppo/seed=1", "grpo/seed=1", "p", order) for order in ("ab", "ba")),
]


def changed(system, prompt, text):
    answers = copy.deepcopy(ANSWERS)
    answers[system][prompt] = text
    return answers


def test_verdicts_on_the_answers_that_are_there_count():
    assert current_verdicts(ROWS, ANSWERS) == (ROWS, Outdated(0, 0, 6, ()))
    assert current_verdicts([], {}) == ([], Outdated())


def test_another_answer_or_prompt_or_none_takes_the_verdicts_of_both_systems():
    left_out = Outdated(2, 2, 6, (("ppo/seed=1", "sft"),))
    assert current_verdicts(ROWS, changed("sft", "q", ("ask more", "four!"))) == (ROWS[4:], left_out)
    gone = {**ANSWERS, "sft": {"p": ANSWERS["sft"]["p"]}}
    assert current_verdicts(ROWS, gone) == (ROWS[4:], left_out)
    asked_otherwise = changed("sft", "q", ("ask less", "four"))
    asked_otherwise["ppo/seed=1"]["q"] = ("ask less", "two")
    assert current_verdicts(ROWS, asked_otherwise) == (ROWS[4:], left_out)
    kept, found = current_verdicts(ROWS, changed("ppo/seed=1", "p", ("ask", "uno")))
    assert (kept, found.verdicts, found.beside, len(found.systems)) == ([], 4, 2, 2)


def test_a_verdict_that_does_not_say_what_it_was_on_is_on_nothing():
    bare = [{key: value for key, value in one.items() if key != "content_key"} for one in ROWS]
    assert current_verdicts(bare, ANSWERS)[0] == []
    exchanged = [{**one, "order": "ba" if one["order"] == "ab" else "ab"} for one in ROWS]
    assert current_verdicts(exchanged, ANSWERS)[0] == []


TOLD = r"<b>(PPO beat GRPO|GRPO beat PPO|PPO v GRPO: tie)</b>"


def trained_again(study, *folders):
    for folder in folders:
        for answer in study["files"][folder]["responses.jsonl"]:
            answer["response"] += " And more."
    return study


def test_a_run_that_was_trained_again_takes_no_verdict_of_its_predecessor():
    study = trained_again(fake_study(), "grpo/seed=42")
    comparison, metrics = compare(*study.inputs())
    rates = comparison["win_rates"]
    assert list(rates["ppo_vs_grpo"]["per_seed"]) == list(rates["grpo_vs_sft"]["per_seed"]) == ["123", "777"]
    assert list(rates["ppo_vs_sft"]["per_seed"]) == ["42", "123", "777"]
    assert rates["ppo_vs_grpo"]["crossed"]["seeds"] == comparison["verdict"]["n"] == 2
    outdated = comparison["judge"]["outdated"]
    assert outdated["verdicts"] == 4 * 60  # 60 prompts, two orders, against PPO and against SFT
    assert outdated["of"] == len(study["judgements"])
    said = "240 of 1080 verdicts are on answers that have changed since"
    assert said in comparison["cautions"][0]
    page = render_report(comparison, *study.inputs()[:3], REPORTING, study["judgements"])
    assert page.count(said) == 2  # on the first screen, and beside the judge
    assert "all verdicts on PPO seed 42 v GRPO seed 42, GRPO seed 42 v SFT, are left out" in page
    assert not re.search(TOLD, page)  # the table of answers shows the first seed
    assert re.search(TOLD, render_report(comparison, *fake_study().inputs()[:3], REPORTING, study["judgements"]))
    assert metrics["evaluation/win_rate"] == rates["ppo_vs_grpo"]["crossed"]["estimate"]


def test_when_every_run_was_trained_again_nothing_is_judged():
    study = fake_study()
    seeds = [f"grpo/seed={seed}" for seed in PROTOCOL["seeds"]]
    comparison, metrics = compare(*trained_again(study, *seeds, "sft").inputs())
    assert comparison["judge"]["judged"] is False
    assert "have changed since" in comparison["judge"]["reason"]
    assert comparison["verdict"]["primary"] is False
    open_ = {"what": "win rate ppo v grpo", "reason": "not judged on the answers as they are"}
    assert open_ in comparison["not_estimable"]
    assert set(metrics) == {"evaluation/cohens_d"}
