"""The judge against people: by hand, on stored verdicts of real judges, and through its own node."""

import json
from collections import Counter

import pytest
from chat_service import completion, verdict

from gemma_alignment.errors import UserError
from gemma_alignment.judging.canaries import REQUESTS
from gemma_alignment.judging.connection import JudgeConnection
from gemma_alignment.judging.labelled import against_labels, label_counts, labelled_comparisons
from gemma_alignment.judging.references import stored_judgements
from gemma_alignment.pipelines.evaluation.nodes import (
    describe_judge,
    estimate_cost,
    judge_again,
    judge_labelled,
    judge_pairs,
    question_judge,
)
from gemma_alignment.report.judge_section import judge_card as judge_section_of_report


def pair(i, high=2.0, low=1.0):
    def message(text):
        return [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": text}]

    return {
        "prompt": f"q{i}",
        "prompt_id": f"id{i}",
        "chosen": message(f"good {i}"),
        "rejected": message(f"bad {i}"),
        "messages": message(f"good {i}"),
        "score_chosen": high,
        "score_rejected": low,
    }


def judged(label, ab, ba, prompt="p"):
    names = {"prompt_id": prompt, "system_a": "labelled/a", "system_b": "labelled/b", "label": label}
    return [{**names, "order": "ab", "verdict": ab}, {**names, "order": "ba", "verdict": ba}]


def test_the_better_answer_stands_on_either_side_and_the_label_goes_with_it():
    made = labelled_comparisons([pair(i) for i in range(200)], 500)
    assert len(made) == 200
    sides = Counter(label for _, label in made)
    assert 70 < sides["a"] < 130
    for comparison, label in made:
        assert (comparison.answer_a if label == "a" else comparison.answer_b).startswith("good")


def test_equal_scores_are_a_tie_and_the_draw_depends_on_the_texts_alone():
    assert labelled_comparisons([pair(1, 1.0, 1.0)], 5)[0][1] == "tie"
    rows = [pair(i) for i in range(50)]
    drawn = labelled_comparisons(rows, 10)
    assert len(drawn) == 10
    assert labelled_comparisons(rows[::-1], 10) == drawn
    assert labelled_comparisons([*rows, rows[0]], 100) == labelled_comparisons(rows, 100)


def test_counts_by_hand():
    rows = [
        *judged("a", "first", "second", "1"),  # right
        *judged("a", "second", "first", "2"),  # wrong
        *judged("b", "first", "first", "3"),  # the orders disagree: tied
        *judged("tie", "first", "second", "4"),  # people tied, the judge did not
        *judged("b", "unparsed", "first", "5"),  # no result
    ]
    labels, results = against_labels(rows)
    assert (labels, results) == (["a", "a", "b", "tie"], ["a", "b", "tie", "a"])
    assert label_counts(labels, results) == {"right": 1, "tied": 1, "wrong": 1, "people_tied": 1}


def test_stored_judges_stand_on_the_card_as_yardsticks(judge_swap, judge_section):
    section = judge_section(kind="none", reference_path=str(judge_swap / "LLMBar" / "verdicts_vanilla.jsonl"))
    found = describe_judge([], [], [], [], [], section)["references"]
    blocks = json.loads((judge_swap / "expected_llmbar.json").read_text())["files"]
    assert len(found) == len(blocks) == 10
    for block in blocks:
        one = found[f"{block['judge']}, {block['subset']}"]
        assert {"win": one["right"], "tie": one["tied"], "loss": one["wrong"]} == block["against_label"]
        assert one["pairs"] == block["n"]
        assert one["consistency"] * block["n"] == pytest.approx(block["consistent"], abs=1e-9)
        assert one["first_slot_share"] == pytest.approx(block["share_first"], abs=1e-12)
        twice = one["same_slot_twice"]
        assert (twice["first"], twice["second"]) == (
            block["flips_first_slot_twice"], block["flips_second_slot_twice"],
        )  # fmt: skip
        assert twice["p"] == pytest.approx(block["flips_binom_p"], abs=1e-8)
    page = judge_section_of_report({"judged": True, "references": found})
    assert "93 / 5 / 2" in page
    assert "GPT-4, Natural" in page


def test_stored_verdicts_that_cannot_be_used_say_so(judge_section, tmp_path):
    unusable = {"{": "holds no stored verdicts", "7": "no field judge", '{"judge": "m"}': "row 1: no field label"}
    for text, match in unusable.items():
        path = tmp_path / "stored.jsonl"
        path.write_text(text + "\n")
        with pytest.raises(UserError, match=match):
            describe_judge([], [], [], [], [], judge_section(kind="none", reference_path=str(path)))
    with pytest.raises(UserError, match="no stored verdicts at"):
        describe_judge([], [], [], [], [], judge_section(kind="none", reference_path=str(tmp_path / "none")))
    row = {"judge": "m", "label": "2", "ab_winner": "2", "ba_winner": None}
    judged_rows = stored_judgements([row])["m"]
    assert [(one["order"], one["verdict"], one["label"]) for one in judged_rows] == [
        ("ab", "second", "b"), ("ba", "unparsed", "b"),
    ]  # fmt: skip


def honest(n, payload):
    texts = json.loads(payload["messages"][1]["content"])
    return completion(verdict("1" if texts["answer_1"].startswith("good") else "2"))


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_labelled_pairs_go_through_the_judge_to_its_card(service, judge_section, tmp_path):
    service.script = honest
    path = write(tmp_path / "people.jsonl", [*(pair(i) for i in range(20)), {"broken": True}])
    section = judge_section(labelled_path=path, labelled_pairs=15)
    connection = JudgeConnection(tmp_path / "cache.jsonl", "key")
    rows = judge_labelled([], connection, section)
    assert len(rows) == len(service.received) == 30
    card = describe_judge([], [], [], rows, [], section)
    people = card["people"]
    assert {name: people[name] for name in ("asked", "right", "tied", "wrong")} == {
        "asked": 15, "right": 15, "tied": 0, "wrong": 0,
    }  # fmt: skip
    assert people["kappa"] == 1.0
    assert card["about_the_judge"]["cost"] == pytest.approx(sum(row["cost"] for row in rows)) != 0.0
    service.script = lambda n, payload: completion(verdict("1"))
    slots = judge_labelled([], JudgeConnection(tmp_path / "other.jsonl", "key"), section)
    people = describe_judge([], [], [], slots, [], section)["people"]
    assert (people["right"], people["tied"], people["kappa"]) == (0, 15, 0.0)


def test_without_labelled_pairs_there_is_no_agreement_and_no_number(service, judge_section, tmp_path):
    connection = JudgeConnection(tmp_path / "cache.jsonl", "key")
    assert judge_labelled([], connection, judge_section()) == []
    assert judge_labelled([], connection, judge_section(kind="none", labelled_path="x")) == []
    people = describe_judge([], [], [], [], [], judge_section())["people"]
    assert (people["asked"], people["kappa"], people["reason"]) == (0, None, "no item was rated twice")


def test_a_file_of_labelled_pairs_that_cannot_be_used_says_so(judge_section, tmp_path):
    connection = JudgeConnection(tmp_path / "cache.jsonl", "key")
    with pytest.raises(UserError, match="no file of labelled pairs"):
        judge_labelled([], connection, judge_section(labelled_path=str(tmp_path / "none")))
    path = write(tmp_path / "people.jsonl", [{"broken": True}])
    with pytest.raises(UserError, match=r"line 1: missing field"):
        judge_labelled([], connection, judge_section(labelled_path=path))


def everything(connection, section, preferences, pairs):
    """Every node that asks the judge, as the pipeline runs them."""
    judge_pairs(pairs, connection, section)
    question_judge(preferences, pairs, connection, section)
    judge_again(pairs, connection, section)
    judge_labelled(pairs, connection, section)


def test_the_estimate_counts_every_call_that_is_made(service, judge_section, tmp_path, caplog):
    """Pairs, questions with a known answer, repeats and labelled pairs; on an empty cache, in between, and after."""
    caplog.set_level("INFO")
    service.script = honest
    preferences = [pair(i, high=2.0 + i) for i in range(20, 29)]  # some are labelled pairs too, and asked once
    path = write(tmp_path / "people.jsonl", [pair(i) for i in range(25, 40)])
    section = judge_section(canaries=4, repeats=8, labelled_path=path, labelled_pairs=12)
    connection = JudgeConnection(tmp_path / "cache.jsonl", "key")
    pairs = [answered(i) for i in range(20)]
    estimate = estimate_cost(pairs, preferences, connection, section)["requests"]
    assert service.received == []
    assert f"{estimate} requests to the judge" in caplog.text
    judge_pairs(pairs, connection, section)
    assert len(service.received) == 2 * 19  # one pair is two equal answers
    left = estimate_cost(pairs, preferences, connection, section)["requests"]
    assert left == estimate - 2 * 19
    everything(connection, section, preferences, pairs)
    assert len(service.received) == estimate > 2 * (19 + 8 + 12)
    assert estimate_cost(pairs, preferences, connection, section)["requests"] == 0


def test_a_canary_is_estimated_beforehand_at_what_it_takes(service, judge_section, tmp_path):
    service.script = honest
    connection = JudgeConnection(tmp_path / "cache.jsonl", "key")
    question_judge([pair(i) for i in range(9)], [], connection, judge_section(canaries=4))
    assert len(service.received) == 4 * REQUESTS


def test_a_cap_that_holds_the_pairs_alone_sends_nothing(service, judge_section, tmp_path):
    pairs, preferences = [answered(i) for i in range(20)], [pair(i) for i in range(9)]
    little = judge_section(canaries=9, repeats=20, spend_cap_usd=0.01)
    connection = JudgeConnection(tmp_path / "cache.jsonl", "key")
    # 38 of the pairs, 99 of the canaries without the 16 that are pairs too, 38 repeats.
    with pytest.raises(UserError, match=r"judging 159 requests will cost about .*Nothing was sent"):
        estimate_cost(pairs, preferences, connection, little)
    assert service.received == []
    alone = {**little, "canaries": 0, "repeats": 0}
    assert estimate_cost(pairs, preferences, connection, alone)["requests"] == 38
    assert estimate_cost(pairs, preferences, connection, {**little, "kind": "none"})["requests"] == 0


def answered(i):
    return {
        "prompt_id": f"p{i}", "prompt": f"q{i}", "system_a": "ppo/seed=1", "system_b": "sft", "answer_a": f"good {i}",
        "answer_b": f"bad {i}" if i else "good 0", "has_gold": False,
    }  # fmt: skip


def test_some_pairs_are_judged_again_with_another_seed(service, judge_section, tmp_path):
    """A judge that changes its mind with the seed agrees with itself by chance alone."""
    service.script = honest
    section = judge_section(repeats=8)
    connection = JudgeConnection(tmp_path / "cache.jsonl", "key")
    pairs = [answered(i) for i in range(20)]
    first = judge_pairs(pairs, connection, section)
    sent = len(service.received)
    again = judge_again(pairs, connection, section)
    assert len(again) == len(service.received) - sent == 16
    assert {payload["seed"] for payload in service.received[sent:]} == {1042}
    assert "p0" not in {row["prompt_id"] for row in again}  # equal answers tell nothing
    repeat = describe_judge(first, [], again, [], pairs, section)["repeat"]
    assert (repeat["asked"], repeat["n"], repeat["agreement"], repeat["kappa"]) == (16, 16, 1.0, 1.0)
    turned = [{**row, "verdict": "tie" if i % 2 else row["verdict"]} for i, row in enumerate(again)]
    turned[0]["verdict"] = "unparsed"
    repeat = describe_judge(first, [], turned, [], pairs, section)["repeat"]
    assert (repeat["asked"], repeat["n"], repeat["agreement"]) == (16, 15, 7 / 15)
    assert judge_again(pairs, connection, section) == again  # from the cache
    assert len(service.received) - sent == 16
