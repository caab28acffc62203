"""The final answers by the source of their prompts, against means taken by hand."""

import pytest
from fake_study import fake_study

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


RUNS = {
    **run("sft", None, 5, 2, 4, 9), **run("ppo", 1, 7, 6, 4, 9), **run("ppo", 2, 9, 6, 8, 9),
    **run("grpo", 1, 6, 3, 3, 9), **run("grpo@k4", 1, 1, 1, 1, 1), **run("grpo", 2, 6),
}  # fmt: skip


def test_means_by_source_system_and_seed():
    known, new = by_source(RUNS, ("ppo", "grpo"), PROMPTS)
    assert (known["source"], known["prompts"], known["measure"]) == ("known task", 1, "gold_score")
    assert known["means"] == {"sft": {"": 5.0}, "ppo": {"1": 7.0, "2": 9.0}, "grpo": {"1": 6.0, "2": 6.0}}
    assert (new["source"], new["prompts"]) == ("new task", 2)
    assert new["means"] == {"sft": {"": 3.0}, "ppo": {"1": 5.0, "2": 7.0}, "grpo": {"1": 3.0}}


def test_without_gold_it_is_the_reward_models_score_and_without_sources_or_answers_nothing():
    bare = {
        key: Run(key, responses=[{k: v for k, v in row.items() if k != "gold_score"} for row in one.responses])
        for key, one in RUNS.items()
    }
    known, _ = by_source(bare, ("ppo", "grpo"), PROMPTS)
    assert (known["measure"], known["means"]["sft"]) == ("reward_model_score", {"": 10.0})
    assert by_source(RUNS, ("ppo", "grpo"), [{"prompt_id": "a", "prompt": "1"}]) == []
    assert by_source({}, ("ppo", "grpo"), PROMPTS) == []


def test_the_table_shows_means_seeds_and_gains():
    protocol = {"method_a": "ppo", "method_b": "grpo"}
    text = str(table_of({"by_source": by_source(RUNS, ("ppo", "grpo"), PROMPTS), "protocol": protocol}))
    row = text[text.index("new task") :]
    for part in ("3.00", "6.00<small>5.00 · 7.00</small>", "3.00", "0.00"):
        assert part in row
    assert table_of({"by_source": [], "protocol": protocol}) is None


@pytest.mark.parametrize("gold", [True, False])
def test_the_comparison_holds_it(gold):
    from gemma_alignment.pipelines.reporting.nodes import compare

    study = fake_study(gold=gold)
    blocks = compare(*study.inputs())[0]["by_source"]
    assert {one["source"]: one["prompts"] for one in blocks} == {"essays": 40, "lists": 20}
    answers = study["files"]["ppo/seed=123"]["responses.jsonl"]
    field = "gold_score" if gold else "reward_model_score"
    asked = [row[field] for i, row in enumerate(answers) if i % 3 == 0]
    assert blocks[1]["means"]["ppo"]["123"] == pytest.approx(sum(asked) / 20, abs=1e-12)
