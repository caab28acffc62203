"""The final answers by the source of their prompts, against means taken by hand."""

import re

import pytest
from fake_study import fake_study

from gemma_alignment.pipelines.reporting.nodes import compare
from gemma_alignment.report.by_source import by_source, table_of
from gemma_alignment.report.runs import Run, RunKey

PROMPTS = [
    {"prompt_id": "a", "prompt": "1", "source": "known task"},
    {"prompt_id": "b", "prompt": "2", "source": "new task"},
    {"prompt_id": "c", "prompt": "3", "source": "new task"},
    {"prompt_id": "d", "prompt": "4"},
]


def run(family, seed, *golds):
    rows = [
        {"prompt_id": prompt, "gold_score": gold, "reward_model_score": 2 * gold}
        for prompt, gold in zip("abcd", golds, strict=False)
    ]
    return {RunKey(family, seed): Run(RunKey(family, seed), responses=rows)}


SPLIT = {"parameters": {"preferences": {"unseen_sources": ["new task"]}}}
PROTOCOL = {"method_a": "ppo", "method_b": "grpo"}
RUNS = {
    **run("sft", None, 5, 2, 4, 9), **run("ppo", 1, 7, 6, 4, 9), **run("ppo", 2, 9, 6, 8, 9),
    **run("grpo", 1, 6, 3, 3, 9), **run("grpo@k4", 1, 1, 1, 1, 1), **run("grpo", 2, 6),
}  # fmt: skip


def sources(runs, card=SPLIT, prompts=PROMPTS):
    """All runs of the two methods are compared; ``card`` is that of the split."""
    used = [one for key, one in runs.items() if key.family in ("ppo", "grpo")]
    split = RunKey("data_processing", None)
    return by_source({**runs, split: Run(split, card=card)}, used, ("ppo", "grpo"), prompts)


def test_means_by_source_system_and_seed():
    known, new = sources(RUNS)
    assert (known["source"], known["prompts"], known["measure"]) == ("known task", 1, "gold_score")
    assert known["means"] == {"sft": {"": 5.0}, "ppo": {"1": 7.0, "2": 9.0}, "grpo": {"1": 6.0, "2": 6.0}}
    assert (new["source"], new["prompts"]) == ("new task", 2)
    assert new["means"] == {"sft": {"": 3.0}, "ppo": {"1": 5.0, "2": 7.0}, "grpo": {"1": 3.0}}


def test_without_gold_it_is_the_reward_models_score_and_without_sources_or_answers_nothing():
    bare = {
        key: Run(key, responses=[{k: v for k, v in row.items() if k != "gold_score"} for row in one.responses])
        for key, one in RUNS.items()
    }
    known, _ = sources(bare)
    assert (known["measure"], known["means"]["sft"]) == ("reward_model_score", {"": 10.0})
    assert sources(RUNS, prompts=[{"prompt_id": "a", "prompt": "1"}]) == []
    assert sources({}) == []


def cells(text, source):
    """The cells of a source's row, without the mark-up."""
    (row,) = [one for one in text.split("<tr>") if source in one]
    return [re.sub(r"<[^>]+>", "|", cell).strip("|") for cell in re.split(r"<t[dh]\b", row)[1:]]


def test_the_table_shows_means_seeds_and_gains():
    text = str(table_of({"by_source": sources(RUNS), "protocol": PROTOCOL}))
    row = text[text.index("new task") :]
    for part in ("3.00", '6.00<small title="seed 1: 5.00, seed 2: 7.00">5.00 · 7.00</small>'):
        assert part in row
    assert "the seeds below it in this order: PPO 1 · 2, GRPO 1 · 2." in text
    assert table_of({"by_source": [], "protocol": PROTOCOL}) is None


def test_a_method_of_which_a_seed_is_missing_has_no_mean_and_no_gain():
    text = str(table_of({"by_source": sources(RUNS), "protocol": PROTOCOL}))
    shown = cells(text, "new task")
    assert "not by all seeds: 1 of 2" in shown[5] and "seed 1: 3.00" in shown[5] and "–" in shown[5]
    assert ("3.00" in shown[6], "–" in shown[7]) == (True, True)  # PPO gained 6 - 3, GRPO nobody knows
    silent = {**RUNS, RunKey("ppo", 3): Run(RunKey("ppo", 3))}
    known, _ = sources(silent)
    assert known["seeds"] == {"ppo": [1, 2, 3], "grpo": [1, 2]}
    text = str(table_of({"by_source": [known], "protocol": PROTOCOL}))
    assert "not by all seeds: 2 of 3" in cells(text, "known task")[4]


def test_it_says_which_sources_were_never_trained_on():
    blocks = sources(RUNS)
    assert [one["held_out_whole"] for one in blocks] == [False, True]
    text = str(table_of({"by_source": blocks, "protocol": PROTOCOL}))
    assert "held out whole" in text
    assert ("no" in cells(text, "known task")[1], "yes" in cells(text, "new task")[1]) == (True, True)
    old = sources(RUNS, {})
    assert [one["held_out_whole"] for one in old] == [None, None] and all(one["reason"] for one in old)
    assert "not known" in cells(str(table_of({"by_source": old, "protocol": PROTOCOL})), "new task")[1]


def test_a_run_that_is_left_out_of_the_comparison_is_in_no_mean_of_it():
    study = fake_study()
    study["files"]["data_processing"] = {"run.json": {"parameters": {"preferences": {"unseen_sources": ["lists"]}}}}
    study["files"]["ppo/seed=42"]["run.json"]["status"] = "failed"
    essays, lists = compare(*study.inputs())[0]["by_source"]
    assert (set(essays["means"]["ppo"]), essays["seeds"]["ppo"]) == ({"123", "777"}, [123, 777])
    assert (set(essays["means"]["grpo"]), set(essays["means"]["sft"])) == ({"42", "123", "777"}, {""})
    assert (essays["held_out_whole"], lists["held_out_whole"]) == (False, True)


@pytest.mark.parametrize("gold", [True, False])
def test_the_comparison_holds_it(gold):
    study = fake_study(gold=gold)
    blocks = compare(*study.inputs())[0]["by_source"]
    assert {one["source"]: one["prompts"] for one in blocks} == {"essays": 40, "lists": 20}
    answers = study["files"]["ppo/seed=123"]["responses.jsonl"]
    field = "gold_score" if gold else "reward_model_score"
    asked = [row[field] for i, row in enumerate(answers) if i % 3 == 0]
    assert blocks[1]["means"]["ppo"]["123"] == pytest.approx(sum(asked) / 20, abs=1e-12)
