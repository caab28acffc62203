"""``python -m gemma_alignment chat`` on the policy of a finished study."""

import json
import shutil
from pathlib import Path

import pytest

from gemma_alignment.chat import Conversation, Trained, talk
from gemma_alignment.errors import UserError
from gemma_alignment.pipelines import models

PARAMETERS = {"seed": 777, "prepare_seed": 42, "variant": "", "data_root": "data"}


@pytest.mark.pipeline
@pytest.mark.cli
def test_prompts_from_a_pipe_are_answered_by_both_models(toy_study):
    chat = ("gemma_alignment", "chat", "--method", "grpo", "--seed", "42", "--compare", "--env=test")
    prompts = "Name two birds.\n\nWhat are two tools?\n"
    code, text = toy_study.command(*chat, "--params", "data_root=data", stdin=prompts, timeout=600)
    assert code == 0, text
    named = [line.split(":")[0] for line in text.splitlines()]
    assert named == ["grpo-seed42", "sft", "grpo-seed42", "sft"]


@pytest.fixture
def trained_elsewhere(toy_study, tmp_path):
    """A data folder with the toy study's models, and PPO's policy in GRPO's place."""
    root = tmp_path / "data"
    shutil.copytree(toy_study.root / "data/06_models", root / "06_models")
    models = root / "06_models"
    shutil.rmtree(models / "grpo/seed=42/policy")
    shutil.copytree(models / "ppo/seed=42/policy", models / "grpo/seed=42/policy")
    return root


def parameters_of(toy_study, root):
    record = json.loads((toy_study.root / "data/07_model_output/grpo/seed=42/run.json").read_text())
    return {**record["parameters"], "seed": 42, "prepare_seed": 42, "variant": None, "data_root": str(root)}


@pytest.mark.pipeline
def test_a_policy_of_another_method_is_refused(toy_study, trained_elsewhere):
    parameters = parameters_of(toy_study, trained_elsewhere)
    trained = Trained.find(Path("/"), "grpo", parameters)
    with pytest.raises(UserError, match="ppo"):
        Conversation(trained, parameters, None)


@pytest.mark.pipeline
def test_the_base_is_the_one_that_the_run_was_trained_on(toy_study, trained_elsewhere, monkeypatch):
    parameters = parameters_of(toy_study, trained_elsewhere)
    trained, opened = Trained.find(Path("/"), "ppo", parameters), []
    chained = {**parameters["modeling"], "rl_base": "sft_adapter", "sharding": "none"}
    trained.record.parent.mkdir(parents=True)
    trained.record.write_text(json.dumps({"parameters": {"modeling": chained}}))
    real = models.open_start
    monkeypatch.setattr(models, "open_start", lambda start, *rest: opened.append(rest[0]) or real(start, *rest))
    with pytest.raises(UserError, match="base"):  # the adapter says that it belongs to the merged model
        Conversation(trained, parameters, None)
    assert opened == [chained]


class Echo:
    def answers(self, prompt, compare):
        yield "grpo-seed1", f"re {prompt}"
        if compare:
            yield "sft", "something"


def test_empty_lines_are_passed_over_and_names_stand_only_where_two_answer():
    assert list(talk(Echo(), ["a\n", "  \n", "b\n"], compare=False)) == ["re a", "re b"]
    assert list(talk(Echo(), ["a\n"], compare=True)) == ["grpo-seed1: re a", "sft: something"]


def test_a_policy_that_is_not_there_is_named_with_those_that_are(tmp_path):
    (tmp_path / "data/06_models/grpo@k4/seed=1/policy").mkdir(parents=True)
    with pytest.raises(UserError) as error:
        Trained.find(tmp_path, "grpo", PARAMETERS)
    text = str(error.value)
    assert "grpo/seed=777/policy" in text
    assert "grpo@k4 seed=1" in text
    assert "kedro run --pipeline=grpo --params seed=777" in text
    with pytest.raises(UserError, match="--params seed=777,variant=k9"):
        Trained.find(tmp_path, "grpo", {**PARAMETERS, "variant": "k9"})
    with pytest.raises(UserError, match="variant=NAME"):
        Trained.find(tmp_path, "grpo@k4", PARAMETERS)
    with pytest.raises(UserError, match=r"unknown method gpro; did you mean grpo\?"):
        Trained.find(tmp_path, "gpro", PARAMETERS)


def test_the_folder_of_a_variant_is_its_own(tmp_path):
    (tmp_path / "data/06_models/sft_merged_model").mkdir(parents=True)
    (tmp_path / "data/06_models/ppo@x/seed=777/policy").mkdir(parents=True)
    assert Trained.find(tmp_path, "ppo", {**PARAMETERS, "variant": "x"}).name == "ppo@x-seed777"
