"""From files of responses to judgements and the judge's card, through the real catalog."""

import json
from collections import Counter
from pathlib import Path

import pytest
import yaml
from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog, DatasetError
from kedro.runner import SequentialRunner

from gemma_alignment.config import ConfigError, build
from gemma_alignment.datasets.judge import JudgeDataset
from gemma_alignment.errors import UserError
from gemma_alignment.judging.connection import JudgeConnection
from gemma_alignment.judging.pairing import resolve, verdicts_by_pair
from gemma_alignment.parameters.judge import EvaluationParameters, JudgeParameters
from gemma_alignment.pipelines.evaluation import create_pipeline
from gemma_alignment.pipelines.evaluation.nodes import (
    describe_judge,
    judge_pairs,
    question_judge,
    select_pairs,
)
from gemma_alignment.settings import CONFIG_LOADER_ARGS
from gemma_alignment.world.gold import gold_score
from gemma_alignment.world.preferences import generate_rows

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def sections():
    return yaml.safe_load((CONF / "base" / "parameters_evaluation.yml").read_text())


def rows(texts, gold=None):
    return [
        {
            "prompt_id": f"p{i}",
            "prompt": f"prompt {i}",
            "response": text,
            "reward_model_score": 0.0,
            "num_tokens": 3,
            "ended": True,
            **({} if gold is None else {"gold_score": gold(text)}),
        }
        for i, text in enumerate(texts)
    ]


def partitions(**runs):
    return {name: (lambda value=value: value) for name, value in runs.items()}


def card(sft="s", reward_model="r", status="finished"):
    prints = {"configuration": "c", "data": "d", "sft": sft, "reward_model": reward_model}
    return {"fingerprints": prints, "status": status, "mlflow_run_id": None}


RESPONSES = {
    "sft/": rows(["a", "bb", "ccc"], len),
    "ppo/seed=42/": rows(["aaaa", "bb", "c"], len),
    "grpo/seed=42/": rows(["aa", "bbbb", "c"], len),
    "grpo/seed=7/": rows(["aaa", "b", "c"], len),
}
CARDS = {name: card() for name in RESPONSES if name != "sft/"}


def select(sections, responses=RESPONSES, cards=CARDS, **changes):
    return select_pairs(partitions(**responses), partitions(**cards), {**sections["evaluation"], **changes})


def met(pairs):
    return sorted({(pair["system_a"], pair["system_b"]) for pair in pairs})


def test_who_meets_whom(sections):
    pairs = select(sections)
    assert met(pairs) == [
        ("grpo/seed=42", "sft"),
        ("grpo/seed=7", "sft"),
        ("ppo/seed=42", "grpo/seed=42"),
        ("ppo/seed=42", "sft"),
    ]
    assert len(pairs) == 12
    first = next(pair for pair in pairs if pair["system_b"] == "grpo/seed=42")
    assert first == {
        "prompt_id": "p0",
        "prompt": "prompt 0",
        "system_a": "ppo/seed=42",
        "system_b": "grpo/seed=42",
        "answer_a": "aaaa",
        "answer_b": "aa",
        "has_gold": True,
    }


def test_methods_and_seeds_can_be_chosen(sections):
    assert met(select(sections, methods=["ppo", "grpo"], seeds=[42], against_sft=False)) == [
        ("ppo/seed=42", "grpo/seed=42")
    ]
    assert len(select(sections, max_prompts=2)) == 8


def test_runs_on_different_models_are_refused_unless_left_out(sections):
    cards = {**CARDS, "grpo/seed=7/": card(reward_model="another")}
    with pytest.raises(UserError, match="do not share one reward model"):
        select(sections, cards=cards)
    assert select(sections, cards=cards, seeds=[42])


def test_answers_of_another_sft_or_reward_model_are_refused_as_the_baseline(sections):
    """The stage of the reward model wrote them: what it read and made says whose they are."""
    prepared = {"fingerprints": {"sft": "s"}, "outputs": {"rm_model_bt": "r"}}
    assert select(sections, cards={**CARDS, "reward_model/": prepared})
    for part, label in ((("fingerprints", "sft"), "one sft"), (("outputs", "rm_model_bt"), "one reward model")):
        trained_again = {**prepared, part[0]: {part[1]: "another"}}
        with pytest.raises(UserError, match=rf"do not share {label}.* in sft") as error:
            select(sections, cards={**CARDS, "reward_model/": trained_again})
        assert "another in sft" in str(error.value)
        assert select(sections, cards={**CARDS, "reward_model/": trained_again}, against_sft=False)


def test_a_run_without_a_card_is_named(sections, caplog):
    assert len(select(sections, cards={})) == 12
    assert "go unchecked: ppo/seed=42, grpo/seed=42, grpo/seed=7" in caplog.text


@pytest.mark.parametrize("status", ["failed", "killed"])
def test_a_run_that_broke_off_is_left_out(sections, caplog, status):
    pairs = select(sections, cards={**CARDS, "ppo/seed=42/": card(sft="other", status=status)})
    assert met(pairs) == [("grpo/seed=42", "sft"), ("grpo/seed=7", "sft")]
    assert f"ppo/seed=42 is left out: its run.json says {status}" in caplog.text


def judged(sections, pairs, tmp_path, **changes):
    return judge_pairs(pairs, JudgeConnection(tmp_path / "cache.jsonl"), {**sections["judge"], **changes})


def test_auto_judges_by_the_rubric_where_there_is_gold(sections, tmp_path):
    pairs = select(sections)
    rows_ = judged(sections, pairs, tmp_path)
    assert len(rows_) == 2 * len(pairs)
    assert {row["model"] for row in rows_} == {"rubric"}
    assert list(tmp_path.iterdir()) == []  # what costs nothing is not cached


def test_auto_without_gold_judges_nothing_and_says_why(sections, tmp_path, caplog):
    pairs = select(sections, {name: rows(["x", "yy", "z"]) for name in RESPONSES})
    assert judged(sections, pairs, tmp_path) == []
    assert "these answers have no gold score" in caplog.text
    described = describe_judge([], [], [], [], pairs, sections["judge"])
    assert described["kind"] == "none"
    assert "judge.kind=openai" in described["reason"]
    assert described["consistency"] is None


def test_none_judges_nothing(sections, tmp_path):
    pairs = select(sections)
    assert judged(sections, pairs, tmp_path, kind="none") == []
    assert (
        question_judge([], pairs, JudgeConnection(tmp_path / "c"), {**sections["judge"], "kind": "none"})
        == []
    )
    assert (
        describe_judge([], [], [], [], pairs, {**sections["judge"], "kind": "none"})["reason"] == "judge.kind is none"
    )


def test_the_rubric_cannot_be_asked_for_without_gold(sections, tmp_path):
    pairs = select(sections, {name: rows(["x", "yy", "z"]) for name in RESPONSES})
    with pytest.raises(UserError, match="no gold score"):
        judged(sections, pairs, tmp_path, kind="rubric")


def test_recorded_judgements_replay(sections, tmp_path):
    pairs = select(sections)
    made = judged(sections, pairs, tmp_path)
    path = tmp_path / "judgements.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    replay = {"kind": "recorded", "recorded_path": str(path)}
    assert judged(sections, pairs, tmp_path, **replay) == made
    other = select(sections, {**RESPONSES, "ppo/seed=42/": rows(["new", "bb", "c"], len)})
    with pytest.raises(UserError, match=r"\d+ of \d+ judgements are not in"):
        judged(sections, other, tmp_path, **replay)


@pytest.mark.parametrize(
    ("section", "cls", "change", "match"),
    [
        ("evaluation", EvaluationParameters, {"methods": []}, "^evaluation: methods is empty"),
        ("evaluation", EvaluationParameters, {"seeds": []}, "^evaluation: seeds is empty"),
        ("evaluation", EvaluationParameters, {"max_prompts": 0}, "max_prompts must be at least 1"),
        ("judge", JudgeParameters, {"kind": "recorded"}, "name the file in judge.recorded_path"),
        ("judge", JudgeParameters, {"kind": "reward_model"}, "judge.kind"),
        ("judge", JudgeParameters, {"attempts": 0}, "^judge: attempts must"),
        ("judge", JudgeParameters, {"kinds": "openai"}, "kind"),
        ("judge.remote", JudgeParameters, {"concurrency": 0}, "^judge.remote: concurrency must be at least 1"),
        (
            "judge.remote",
            JudgeParameters,
            {"spend_cap_usd": 0.0},
            "^judge.remote: spend_cap_usd must be above 0",
        ),
        ("judge.remote", JudgeParameters, {"temperature": 3.0}, r"temperature must lie in \[0, 2\]"),
        ("judge.rubric", JudgeParameters, {"noise": -1.0}, "judge.rubric"),
    ],
)
def test_settings_that_cannot_work_are_refused(sections, section, cls, change, match):
    root, _, part = section.partition(".")
    values = dict(sections[root])
    if part:
        values[part] = {**values[part], **change}
    else:
        values |= change
    with pytest.raises(ConfigError, match=match):
        build(cls, values, root)


def test_a_negative_price_is_refused(sections):
    values = sections["judge"]
    values["remote"]["prices"][0]["input_usd_per_million"] = -1.0
    with pytest.raises(ConfigError, match="is negative"):
        build(JudgeParameters, values, "judge")


def test_the_entry_of_the_catalog_gives_a_handle_and_refuses_to_be_written(tmp_path):
    dataset = JudgeDataset(filepath=str(tmp_path / "cache.jsonl"))
    assert isinstance(dataset.load(), JudgeConnection)
    assert dataset.exists()
    with pytest.raises(DatasetError, match="cannot be saved"):
        dataset.save("anything")


def write_lines(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


@pytest.fixture
def world(tmp_path):
    """Files of a small study: PPO gives the better answers of the world's pairs, GRPO the worse ones."""
    pairs = list(generate_rows(rows=60, noise=0.0, max_skill=0.6, corrupted_share=0.2, seed=3))
    pairs = list({pair["prompt_id"]: pair for pair in pairs}.values())

    def responses(side):
        return [
            {
                "prompt_id": pair["prompt_id"],
                "prompt": pair["prompt"],
                "response": pair[side][-1]["content"],
                "reward_model_score": 0.0,
                "gold_score": gold_score(pair["prompt"], pair[side][-1]["content"]),
                "num_tokens": 9,
                "ended": True,
            }
            for pair in pairs
        ]

    output = tmp_path / "07_model_output"
    write_lines(output / "sft" / "responses.jsonl", responses("rejected"))
    for method, side in (("ppo", "chosen"), ("grpo", "rejected")):
        write_lines(output / method / "seed=42" / "responses.jsonl", responses(side))
        (output / method / "seed=42" / "run.json").write_text(json.dumps(card()))
    write_lines(tmp_path / "03_primary" / "preferences_eval.jsonl", pairs)
    return tmp_path


def run_pipeline(data_root, sections):
    loader = OmegaConfigLoader(str(CONF), runtime_params={"data_root": str(data_root)}, **CONFIG_LOADER_ARGS)
    pipeline = create_pipeline()
    entries = {name: entry for name, entry in loader["catalog"].items() if name in pipeline.datasets()}
    free = {name for name in pipeline.datasets() if name.startswith("params:")}
    assert set(entries) == pipeline.datasets() - free, "every dataset of the pipeline stands in the catalog"
    catalog = DataCatalog.from_config(entries, loader["credentials"])
    for name, values in sections.items():
        catalog[f"params:{name}"] = values
    SequentialRunner().run(pipeline, catalog)
    return {path.name: path.read_bytes() for path in (data_root / "07_model_output").glob("*.json*")}


@pytest.mark.pipeline
def test_the_pipeline_through_the_real_catalog(world, sections, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-used")
    first = run_pipeline(world, sections)
    asked = {f"{kind}judgements.jsonl" for kind in ("", "canary_", "repeat_", "labelled_")}
    assert set(first) == {*asked, "judge_card.json"}
    assert run_pipeline(world, sections) == first  # byte for byte, over its own output
    assert "sk-not-used" not in str(first)

    made = [json.loads(line) for line in first["judgements.jsonl"].splitlines()]
    results = Counter((a, b, resolve(*verdicts)) for (a, b, _), verdicts in verdicts_by_pair(made).items())
    prompts = len(made) // 6
    assert results["ppo/seed=42", "grpo/seed=42", "win"] > 0.7 * prompts
    assert results["ppo/seed=42", "grpo/seed=42", "loss"] < 0.1 * prompts
    assert results["grpo/seed=42", "sft", "tie"] == prompts  # the same answers

    described = json.loads(first["judge_card.json"])
    assert described["kind"] == "rubric"
    assert described["judgements"] == len(made)
    assert described["identical_answers"] == prompts  # GRPO against SFT
    assert described["pairs"] == 2 * prompts
    assert described["distinct_pairs"] == prompts  # PPO met the same answers twice
    assert described["questions"] == described["calls"] == 2 * prompts
    assert described["consistency"] > 0.7
    agreement = described["kappa_between_orders"]
    assert agreement["agreement"] == pytest.approx(described["consistency"])
    assert agreement["kappa"] < agreement["agreement"]
    assert described["unparsed"] == described["cost"] == described["missing_pairs"] == 0
    assert described["control_strings"] == {"grpo/seed=42": 0, "ppo/seed=42": 0, "sft": 0}
    repeat = described["repeat"]
    asked_again = [json.loads(line) for line in first["repeat_judgements.jsonl"].splitlines()]
    assert len({row["content_key"] for row in asked_again}) == len(asked_again)  # no question is drawn twice
    # 20 of each of six sorts in two orders, "same" in one, and the repeats: some have the texts of PPO's own pairs
    assert 80 + 20 * 9 <= described["about_the_judge"]["calls"] <= 80 + 20 * 11
    assert repeat["asked"] == repeat["n"] == 80
    assert 0.6 < repeat["agreement"] < 1.0  # other noise
    assert described["people"]["asked"] == 0
    for sort in ("same", "empty", "imitation", "flattery", "injection", "known"):
        assert described["canaries"][sort] == {"asked": 20, "right": 20, "both_orders": 20, "missing": 0}


@pytest.mark.pipeline
def test_datasets_of_the_same_run_are_waited_for():
    pipeline = create_pipeline(["ppo.responses", "grpo.responses"])
    first = next(node for node in pipeline.nodes if node.name == "select_pairs")
    assert {"ppo.responses", "grpo.responses"} <= set(first.inputs)
    assert all("evaluation" in node.tags for node in pipeline.nodes)
