"""``python -m gemma_alignment chat`` on the policy of a finished study."""

import pytest

from gemma_alignment.chat import Trained, talk
from gemma_alignment.errors import UserError

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
    with pytest.raises(UserError, match="unknown method gpro"):
        Trained.find(tmp_path, "gpro", PARAMETERS)


def test_the_folder_of_a_variant_is_its_own(tmp_path):
    (tmp_path / "data/06_models/sft_merged_model").mkdir(parents=True)
    (tmp_path / "data/06_models/ppo@x/seed=777/policy").mkdir(parents=True)
    assert Trained.find(tmp_path, "ppo", {**PARAMETERS, "variant": "x"}).name == "ppo@x-seed777"
