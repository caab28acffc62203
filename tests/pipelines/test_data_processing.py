"""Data: every line accounted for, splits that do not leak, records to the letter."""

import copy
import json
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_alignment.datasets.json_lines import JSONLinesDataset
from gemma_alignment.datasets.preference_source import PreferenceSource
from gemma_alignment.errors import UserError
from gemma_alignment.pipelines.data_processing import nodes
from gemma_alignment.pipelines.data_processing.rows import check_rows
from gemma_alignment.pipelines.data_processing.said import counts_of, log_counts, too_few
from gemma_alignment.world.grammar import read_instruction
from gemma_alignment.world.preferences import generate_rows, unseen_tasks

GOOD = next(iter(generate_rows(1, 1.0, 0.6, 0.0, 5)))
PREFERENCES = {
    "source": "embedded", "path": None, "repository": None, "revision": None, "split": "train_prefs",
    "sample_size": 60, "eval_fraction": 0.2, "min_rows": 5, "score_range": [0, 10], "max_prompt_tokens": 96,
    "max_response_tokens": 96, "max_line_bytes": 100000, "unseen_sources": ["new task"],
}  # fmt: skip


def changed(**changes) -> bytes:
    return json.dumps({**copy.deepcopy(GOOD), **changes}).encode()


def without(name: str) -> bytes:
    return json.dumps({key: value for key, value in GOOD.items() if key != name}).encode()


USER = {"role": "user", "content": GOOD["prompt"]}
ELSEWHERE = [{"role": "user", "content": "Name two other things."}, GOOD["chosen"][-1]]
BAD = {
    "not JSON: Expecting value, at character 6": b'{"a":x}',
    "nested deeper than 50 levels": b'{"a":' * 15000 + b"1" + b"}" * 15000,
    "a number of thousands of digits": b'{"a":' + b"9" * 5000 + b"}",
    "not a JSON object": b"[1]",
    "invalid UTF-8": b'{"a": "\xff"}',
    "longer than max_line_bytes": b'"' + b"x" * 100001 + b'"',
    "missing field score_chosen": without("score_chosen"),
    "missing field messages": without("messages"),
    "prompt is empty": changed(prompt="  "),
    "prompt_id is empty": changed(prompt_id=""),
    "roles are": changed(chosen=[USER, {"role": "system", "content": "y"}]),
    "empty answer": changed(rejected=[USER, {"role": "assistant", "content": " "}]),
    "without text content": changed(chosen=[USER, {"role": "assistant", "content": 3}]),
    "not a list": changed(chosen="text"),
    "score_chosen is not a number": changed(score_chosen="9"),
    "score_rejected is not a number": changed(score_rejected=True),
    "lies outside": changed(score_chosen=11),
    "identical": changed(rejected=GOOD["chosen"]),
    "half a character": changed(source="\ud800"),
    "exact repeat": changed(),
    "another prompt in an earlier": changed(
        prompt="Name two other things.", chosen=ELSEWHERE, rejected=[ELSEWHERE[0], GOOD["rejected"][-1]]
    ),
    "chosen: the conversation starts with another prompt": changed(chosen=ELSEWHERE),
    "rejected: the conversation starts with another prompt": changed(rejected=ELSEWHERE),
}


@pytest.mark.parametrize("reason", BAD)
def test_each_fault_is_rejected_with_its_line_and_reason(reason: str) -> None:
    kept, rejected = check_rows([(1, changed()), (7, BAD[reason])], 100000, 0, 10)
    assert [item["line"] for item in kept] == [1]
    assert rejected[0]["line"] == 7
    assert reason in rejected[0]["reason"]


@pytest.mark.parametrize("source", [["a"], {"a": 1}, 3, True, "", " "])
def test_a_source_that_is_no_text_is_rejected(source: object) -> None:
    kept, rejected = check_rows([(1, changed(source=source))], 100000, 0, 10)
    assert (kept, [item["reason"] for item in rejected]) == ([], ["source is not text"])


@pytest.mark.parametrize("line", [changed(source="a"), changed(source=None), without("source")])
def test_a_source_is_a_text_or_is_left_out(line: bytes) -> None:
    kept, rejected = check_rows([(1, line)], 100000, 0, 10)
    assert (len(kept), rejected) == (1, [])


@given(st.lists(st.one_of(st.binary(), st.sampled_from(list(BAD.values())), st.just(changed())), max_size=12))
def test_rows_in_are_rows_kept_plus_rows_rejected(lines: list[bytes]) -> None:
    kept, rejected = check_rows(list(enumerate(lines)), 100000, 0, 10)
    assert sorted(item["line"] for item in kept + rejected) == [i for i, line in enumerate(lines) if line.strip()]
    json.dumps(rejected)


def test_a_rejected_row_has_the_number_of_its_line_in_the_file_behind_blank_lines_too(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n" + changed() + b"\r\n \r\n\n{\n" + changed(source="else"))
    settings = {**PREFERENCES, "source": "jsonl", "path": str(path)}
    collected = nodes.collect_preferences(PreferenceSource(), settings, {}, 42)
    kept, rejected = nodes.validate_rows(collected, settings)
    assert [item["line"] for item in kept] == [2]
    assert [(item["line"], item["reason"]) for item in rejected] == [
        (5, "not JSON: Expecting property name enclosed in double quotes, at character 2"),
        (6, "an exact repeat of an earlier pair"),
    ]  # fmt: skip
    raw = JSONLinesDataset(str(tmp_path / "preferences.jsonl"))
    raw.save(collected)
    assert (tmp_path / "preferences.jsonl").read_bytes().splitlines()[5] == changed(source="else")
    assert len(raw.load()) == 3


def test_a_mark_of_utf_8_in_front_of_a_file_costs_no_row(tmp_path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + changed() + b"\n" + changed(prompt_id="other"))
    settings = {**PREFERENCES, "source": "jsonl", "path": str(path)}
    collected = nodes.collect_preferences(PreferenceSource(), settings, {}, 42)
    assert list(collected) == [changed(), changed(prompt_id="other")]


def test_too_few_rows_are_said_of_which_file_why_and_where_the_first_of_each_kind_is() -> None:
    kept, bad = check_rows([(3, b"\xff"), (4, changed(score_chosen=11)), (8, b" \xff")], 100000, 0, 10)
    assert kept == []
    first, *rest = too_few([], bad, "pairs.jsonl", 5).splitlines()
    assert first == "Only 0 preference rows of pairs.jsonl are usable, but preferences.min_rows is 5."
    assert rest[:3] == [
        "Rejected: 3",
        "       2  invalid UTF-8 at byte N (line 3)",
        "       1  score_chosen lies outside N..N (line 4)",
    ]  # fmt: skip


def test_scores_that_contradict_the_label_and_conversations_on_another_prompt_are_counted(caplog) -> None:
    """The one is kept and warned of, since `chosen` is the label; the other is rejected."""
    rows = [copy.deepcopy(row) for row in generate_rows(12, 1.0, 0.6, 0.0, 1)]
    for row in rows[:2]:
        row["score_chosen"], row["score_rejected"] = 2.0, 3.0
    for row in rows[2:5]:
        row["chosen"] = [{"role": "user", "content": "What is this?"}, row["chosen"][-1]]
    rows[5]["rejected"] = [{"role": "user", "content": f" {rows[5]['prompt']}\n"}, rows[5]["rejected"][-1]]
    kept, rejected = check_rows([(i, json.dumps(row).encode()) for i, row in enumerate(rows)], 100000, 0, 10)
    made = nodes.train_tokenizer(kept, {"vocabulary_size": 420}, {"base_model": "pretrain"}, {"source": "jsonl"}, 42)
    good, _, counts = nodes.limit_lengths(kept, rejected, made, {**PREFERENCES, "max_response_tokens": 500})
    assert [item["line"] for item in rejected] == [2, 3, 4]
    assert (counts["data/other_prompt"], counts["data/reversed_scores"]) == (3, 2)
    assert (counts["data/rows_kept"], counts["data/rows_rejected"]) == (len(good), 3)
    assert good[0]["score_chosen"] < good[0]["score_rejected"]
    assert "2 kept rows give the rejected answer the higher score" in caplog.text


def test_several_pairs_of_a_prompt_and_equal_scores_are_kept() -> None:
    other = changed(rejected=[USER, {"role": "assistant", "content": "else"}], score_chosen=5.0, score_rejected=5.0)
    kept, rejected = check_rows([(1, changed()), (2, other)], 100000, 0, 10)
    assert (len(kept), rejected) == (2, [])


def test_genrm_record_to_the_letter() -> None:
    row = {"prompt": "P", "chosen": [USER, {"role": "assistant", "content": "C"}], "score_chosen": 8}
    record = nodes.to_genrm_record(row)
    assert [m["role"] for m in record["messages"]] == ["user", "assistant"]
    assert record["messages"][0]["content"].startswith("User: P\n\nAssistant: C\n\nAnalyze the quality")
    assert record["messages"][1]["content"] == "Score: 8.0/10. The response is helpful, harmless, and honest."
    assert nodes.parse_score(record["messages"][1]["content"]) == 8.0


@given(st.floats(0, 10))
def test_the_score_parses_back(score: float) -> None:
    text = nodes.to_genrm_record({**GOOD, "score_chosen": score})["messages"][1]["content"]
    assert nodes.parse_score(text) == pytest.approx(score, abs=0.0501)


@given(st.text())
def test_parse_score_survives_any_text(text: str) -> None:
    found = nodes.parse_score(text)
    assert found is None or found >= 0


def rows_with_repeats() -> list[dict]:
    return list(generate_rows(400, 1.0, 0.6, 0.2, 9))


def test_the_split_is_by_prompt_and_complete() -> None:
    rows = rows_with_repeats()
    train, test, prompts_train, prompts_eval, sizes = nodes.split_preferences(rows, PREFERENCES, 42)
    assert Counter(json.dumps(r) for r in (*train, *test)) == Counter(json.dumps(r) for r in rows)
    assert not {r["prompt_id"] for r in train} & {r["prompt_id"] for r in test}
    assert {r["prompt_id"] for r in train} == {p["prompt_id"] for p in prompts_train}
    assert len(prompts_eval) == len({p["prompt_id"] for p in prompts_eval})
    assert sizes == {"data/train_pairs": len(train), "data/eval_pairs": len(test)}
    assert 0.1 < len(test) / len(rows) < 0.3
    assert list(nodes.split_preferences(rows, PREFERENCES, 43)[1]) != list(test)


def test_an_unseen_source_is_held_out_whole_and_so_is_each_prompt_that_has_a_row_of_it(caplog) -> None:
    rows = [{**row, "source": "known"} for row in rows_with_repeats()]
    twice = Counter(row["prompt_id"] for row in rows).most_common(1)[0][0]
    [row for row in rows if row["prompt_id"] == twice][-1]["source"] = "new"
    del rows[0]["source"]
    settings = {**PREFERENCES, "eval_fraction": 1e-9, "unseen_sources": ["new", "nowhere"]}
    with caplog.at_level("INFO"):
        train, test, prompts_train, prompts_eval, _ = nodes.split_preferences(rows, settings, 42)
    assert {row["prompt_id"] for row in test} == {twice}
    assert len(test) > 1
    assert [(row["prompt_id"], row["source"]) for row in prompts_eval] == [(twice, "new")]
    assert {row.get("source") for row in (*train, *prompts_train)} == {"known", None}
    assert "No row is of the source 'nowhere'" in caplog.text
    assert "'new'" not in caplog.text
    caplog.clear()
    with caplog.at_level("INFO"):
        nodes.split_preferences([{**row, "source": None} for row in rows_with_repeats()], PREFERENCES, 42)
    assert "is of the source" not in caplog.text


def test_a_text_under_several_prompt_ids_is_one_prompt_on_one_side_of_the_split() -> None:
    rows = list(generate_rows(300, 1.0, 0.6, 0.2, 9))
    for i, row in enumerate(rows):
        row |= {"prompt_id": str(i), "prompt": row["prompt"] + " " * (i % 2), "source": "known"}
    rows[-1]["source"] = "new"
    settings = {**PREFERENCES, "eval_fraction": 0.5, "unseen_sources": ["new"]}
    train, test, _, prompts_eval, _ = nodes.split_preferences(rows, settings, 42)
    assert len({row["prompt"].strip() for row in rows}) < 290
    assert not {row["prompt"].strip() for row in train} & {row["prompt"].strip() for row in test}
    new = {row["prompt_id"] for row in prompts_eval if row["source"] == "new"}
    assert new == {row["prompt_id"] for row in rows if row["prompt"].strip() == rows[-1]["prompt"].strip()}


def test_a_prompt_of_an_unseen_source_is_held_out_under_its_other_prompt_id_too() -> None:
    rows = [{**copy.deepcopy(row), "source": "known"} for row in rows_with_repeats()]
    rows.append({**copy.deepcopy(rows[0]), "prompt_id": "another", "source": "new"})
    settings = {**PREFERENCES, "eval_fraction": 1e-9, "unseen_sources": ["new"]}
    train, test, _, prompts_eval, _ = nodes.split_preferences(rows, settings, 42)
    assert {row["prompt_id"] for row in test} == {rows[0]["prompt_id"], "another"}
    assert [row["source"] for row in prompts_eval] == ["new", "new"]
    assert rows[0]["prompt"] not in {row["prompt"] for row in train}


def test_pairs_in_both_orders_and_prompts_under_several_ids_are_counted(caplog) -> None:
    turned = json.loads(changed(chosen=GOOD["rejected"], rejected=GOOD["chosen"]))
    third = [USER, {"role": "assistant", "content": "else"}]
    rows = [changed(), json.dumps(turned).encode(), changed(rejected=third, prompt_id="another")]
    kept, rejected = check_rows(list(enumerate(rows, 1)), 100000, 0, 10)
    counts = counts_of([item["row"] for item in kept], rejected)
    assert (len(kept), rejected) == (3, [])
    assert (counts["data/contrary_pairs"], counts["data/doubled_prompts"]) == (1, 1)
    log_counts(counts, rejected)
    assert "Pairs of answers that the source gives in both orders: 1." in caplog.text


def test_the_worlds_new_tasks_are_in_no_training_prompt() -> None:
    rows = list(generate_rows(2000, 0.8, 0.7, 0.2, 9, unseen=3))
    _, _, prompts_train, prompts_eval, _ = nodes.split_preferences(rows, PREFERENCES, 9)
    seen, held = ({read_instruction(row["prompt"]) for row in side} for side in (prompts_train, prompts_eval))
    assert len(held - seen) == 3
    assert held - seen == unseen_tasks(3, 9)
    assert {row["source"] for row in prompts_eval} == {"known task", "new task"}


def test_lengths_are_limited_and_nothing_is_cut() -> None:
    kept, rejected = check_rows(
        [(i, json.dumps(row).encode()) for i, row in enumerate(generate_rows(40, 1.0, 0.6, 0.2, 1), 1)], 100000, 0, 10
    )
    made = nodes.train_tokenizer(kept, {"vocabulary_size": 420}, {"base_model": "pretrain"}, {"source": "jsonl"}, 42)
    kept[3]["row"]["score_rejected"] = kept[3]["row"]["score_chosen"]
    good, bad, counts = nodes.limit_lengths(kept, rejected, made, {**PREFERENCES, "max_response_tokens": 60})
    assert len(good) + len(bad) == 40
    equal = sum(row["score_chosen"] == row["score_rejected"] for row in good)
    sizes = {"data/rows_kept": len(good), "data/rows_rejected": len(bad), "data/equal_scores": equal}
    others = ("other_prompt", "reversed_scores", "contrary_pairs", "doubled_prompts")
    assert counts == {**sizes, **{f"data/{name}": 0 for name in others}}
    assert equal >= 1
    assert bad
    assert all("max_response_tokens 60" in item["reason"] for item in bad if item not in rejected)
    originals = [item["row"] for item in kept]
    assert all(row in originals for row in good)
    with pytest.raises(UserError, match=r"Only 0 preference rows of the source embedded are usable"):
        nodes.limit_lengths(kept, rejected, made, {**PREFERENCES, "max_prompt_tokens": 3})
