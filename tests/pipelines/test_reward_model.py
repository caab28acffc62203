"""What is left of each held-out pair: the reward model's outputs, the world's gold, the SFT model's reading."""

import json
from pathlib import Path

import pytest
import torch
import toy
import yaml

from gemma_alignment.config import build
from gemma_alignment.errors import UserError
from gemma_alignment.modeling.saving import SavedModel, saved_adapter
from gemma_alignment.modeling.sequences import sequences
from gemma_alignment.parameters.training import RewardModelParameters
from gemma_alignment.pipelines.data_processing.nodes import to_genrm_record
from gemma_alignment.pipelines.reward_model import create_pipeline
from gemma_alignment.pipelines.reward_model.nodes import _pairs, _told_apart, score_held_out
from gemma_alignment.rollout import sampling
from gemma_alignment.training import preference
from gemma_alignment.world.gold import gold_score
from gemma_alignment.world.preferences import generate_rows, row

CONF = Path(__file__).parents[2] / "conf"
MODELING = yaml.safe_load((CONF / "base" / "parameters_modeling.yml").read_text(encoding="utf-8"))["modeling"]
MODELING["lora"] = {"rank": 4, "alpha": 8, "targets": "all-linear"}
RUNTIME = {"device": "cpu", "threads": 1}
ROLLOUT = {
    "max_new_tokens": 6, "temperature": 1.0, "batch_size": 64, "engine": "transformers", "weights": "merged",
    "precision": "as_held",
}  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Directories of a base and of a reward model that prefers something, and the model itself."""
    root = tmp_path_factory.mktemp("models")
    model = toy.shared(("reward",))
    SavedModel(toy.tiny_gemma(toy.SHAPE, len(toy.chat().tokenizer), 0), toy.chat().tokenizer).save_pretrained(
        str(root / "base")
    )
    toy.disturb(model, "reward")
    saved_adapter(model, "reward", str(root / "base"), {"mean": 0.0, "sd": 1.0}).save_pretrained(str(root / "reward"))
    return str(root / "base"), str(root / "reward"), model


@pytest.fixture
def section():
    values = yaml.safe_load((CONF / "base" / "parameters_reward_model.yml").read_text())["reward_model"]
    return {**values, "genrm_pairs": 3, "microbatch_size": 4}


def pairs():
    made = list(generate_rows(rows=11, noise=1.0, max_skill=0.6, corrupted_share=0.3, seed=1))
    made[2]["source"] = "somewhere"
    return [*made, row("Name two birds.", "one", "two", 5.0, 5.0)]


def reward_pairs():
    return _pairs(toy.chat(), _told_apart(pairs(), True))


def scored(trained, section, source="embedded", rows=None):
    base, reward, _ = trained
    given = rows or pairs()
    return score_held_out(base, reward, given, MODELING, RUNTIME, section, ROLLOUT, {"source": source}, 42)


def test_outputs_are_those_of_the_model_one_answer_at_a_time(trained, section):
    rows = scored(trained, section)
    told_apart = [one for one in pairs() if one["score_chosen"] != one["score_rejected"]]
    assert len(rows) == len(told_apart) < len(pairs())
    model, chat = trained[2], toy.chat()
    for found, one in zip(rows, told_apart, strict=True):
        for side in ("chosen", "rejected"):
            text = one[side][-1]["content"]
            alone = sequences([chat.encode_prompt(one["prompt"])], [chat.encode_response(text)], chat.pad_id)
            with model.role("reward"):
                assert found[f"output_{side}"] == pytest.approx(float(model.scores(alone)[0]), abs=1e-4)
            assert found[f"tokens_{side}"] == len(chat.encode_response(text))
            assert found[f"characters_{side}"] == len(text)
            assert found[f"written_{side}"] == one[f"score_{side}"]
            assert found[f"gold_{side}"] == pytest.approx(gold_score(one["prompt"], text), abs=1e-6)
        assert found["prompt_id"] == one["prompt_id"]
    assert [found["source"] for found in rows] == [one.get("source") for one in told_apart]
    assert "somewhere" in {found["source"] for found in rows}


def test_the_accuracy_of_the_rows_is_the_one_that_training_logs(trained, section):
    rows = scored(trained, section)
    margins = preference.margins(trained[2], reward_pairs(), toy.chat().pad_id, 4)
    assert [one["output_chosen"] - one["output_rejected"] for one in rows] == pytest.approx(margins, abs=1e-4)


def test_held_out_pairs_are_read_a_few_at_a_time_and_nothing_else_changes(trained, section, monkeypatch):
    whole, held_out = list(scored(trained, section)), reward_pairs()
    margins = preference.margins(trained[2], held_out, toy.chat().pad_id, 4)
    monkeypatch.setattr(preference, "AT_A_TIME", 2)
    sizes, real = [], preference.by_length
    counted = lambda prompts, *more: sizes.append(len(prompts)) or real(prompts, *more)  # noqa: E731
    monkeypatch.setattr(preference, "by_length", counted)
    assert preference.margins(trained[2], held_out, toy.chat().pad_id, 4) == pytest.approx(margins, abs=1e-5)
    assert sizes == [2] * (len(held_out) // 2) + [1] * (len(held_out) % 2)
    for found, expected in zip(scored(trained, section), whole, strict=True):
        outputs = {key: value for key, value in expected.items() if key.startswith("output_")}
        assert {key: found[key] for key in outputs} == pytest.approx(outputs, abs=2e-5)
        assert {**found, **outputs} == expected


def test_without_a_known_world_there_is_no_gold_and_equal_scores_can_stay(trained, section):
    rows = scored(trained, {**section, "drop_equal_scores": False, "genrm_pairs": 0}, "jsonl")
    assert len(rows) == len(pairs())
    assert {one[f"gold_{side}"] for one in rows for side in ("chosen", "rejected")} == {None}
    assert {one[f"genrm_{side}"] for one in rows for side in ("chosen", "rejected")} == {None}
    json.dumps(list(rows), allow_nan=False)


def test_the_sft_model_is_asked_as_it_was_trained_and_its_score_is_read(trained, section, monkeypatch):
    asked = []
    replies = ["Score: 7.5/10. The", "no score", "Score: 3.0/10.", "Score: 10.0/10", "", "Score: 4/10"]

    def sample(decoder, questions, group_size, **settings):
        asked.extend(questions)
        assert (group_size, settings["temperature"]) == (1, 0.0)
        chat = toy.chat()
        tokens = [chat.encode_response(text) for text in replies]
        found = sequences(questions, tokens, chat.pad_id)
        likely = torch.zeros(found.response_mask.shape)
        return sampling.Rollout(found, likely, torch.ones(len(tokens), dtype=torch.bool), 0)

    monkeypatch.setattr(sampling, "sample", sample)
    rows = scored(trained, section)
    first = pairs()[0]
    assert asked[0] == toy.chat().encode_prompt(to_genrm_record(first)["messages"][0]["content"])
    turned = {**first, "chosen": first["rejected"]}
    assert asked[1] == toy.chat().encode_prompt(to_genrm_record(turned)["messages"][0]["content"])
    assert len(asked) == 6
    read = [(one["genrm_chosen"], one["genrm_rejected"]) for one in rows]
    assert read[:3] == [(7.5, None), (3.0, 10.0), (None, 4.0)]
    assert set(read[3:]) == {(None, None)}
    assert [one["asked_genrm_chosen"] for one in rows[:5]] == [True] * 3 + [False] * 2


def test_the_pipeline_leaves_the_scores_of_held_out_pairs():
    made = create_pipeline()
    assert "reward_model.eval_scores" in made.all_outputs()
    assert all("reward_model" in node.tags for node in made.nodes)


def test_a_negative_number_of_pairs_is_refused(section):
    from gemma_alignment.config import ConfigError

    with pytest.raises(ConfigError, match="genrm_pairs"):
        build(RewardModelParameters, {**section, "genrm_pairs": -1}, "reward_model")


def trained_on(trained, section, tmp_path, rows):
    """The node on ``rows`` as training and held-out pairs."""
    from gemma_alignment.datasets.checkpoint_store import CheckpointStore
    from gemma_alignment.datasets.run_log import RunLog
    from gemma_alignment.pipelines.reward_model.nodes import train_reward_model

    settings = {**section, "epochs": 1, "batch_size": 2, "normalizer_prompts": 2, "log_every": 1, "checkpoint_every": 1}
    return train_reward_model(
        trained[0], rows, rows, rows, MODELING, RUNTIME, settings, ROLLOUT, 42, RunLog(tmp_path),
        CheckpointStore(tmp_path / "checkpoints", False),
    )  # fmt: skip


def test_without_a_pair_that_is_told_apart_nothing_is_trained_and_nothing_logged(trained, section, tmp_path):
    equal = [{**one, "score_rejected": one["score_chosen"]} for one in pairs()]
    with pytest.raises(UserError, match="has 0 pairs to learn from and 0 held-out ones"):
        trained_on(trained, section, tmp_path, equal)
    assert not (tmp_path / "history.jsonl").exists()


def test_a_reward_model_at_chance_is_said(trained, section, tmp_path, caplog):
    upside_down = [{**one, "chosen": one["rejected"], "rejected": one["chosen"]} for one in pairs()]
    _, history = trained_on(trained, {**section, "learning_rate": 1e-9}, tmp_path, [*pairs(), *upside_down])
    assert history[-1]["reward_model/accuracy"] == pytest.approx(0.5, abs=0.05)
    assert "not shown to be better than chance" in caplog.text
