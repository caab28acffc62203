"""Which systems meet, and which must not."""

import pytest

from gemma_alignment.errors import UserError
from gemma_alignment.judging.answers import Answers, join
from gemma_alignment.judging.selection import System, check_shared_models, pair_systems, select_systems

SFT = System("sft", None)


def names(pairs):
    return [(a.name, b.name) for a, b in pairs]


@pytest.mark.parametrize("ending", ["", "/", "/responses.jsonl", "/run.json"])
@pytest.mark.parametrize(
    ("folder", "system"),
    [
        ("sft", SFT),
        ("ppo/seed=42", System("ppo", 42)),
        ("dr_grpo/seed=7", System("dr_grpo", 7)),
        ("grpo@k4/seed=1", System("grpo@k4", 1)),
        ("grpo@group_size=4/seed=1", System("grpo@group_size=4", 1)),
    ],
)
def test_partition_ids_are_read_with_and_without_their_ending(folder, system, ending):
    assert System.of(folder + ending) == system
    assert system.name == folder


@pytest.mark.parametrize("partition", ["", "/", "ppo/", "ppo/seed=x/", "ppo/seed=1/old/", "a/b/seed=1/", "judgements"])
def test_other_folders_are_no_systems(partition):
    assert System.of(partition) is None


def test_methods_of_one_seed_meet_and_each_meets_the_sft_model():
    systems = [
        System("grpo", 2),
        SFT,
        System("ppo", 1),
        System("grpo", 1),
        System("ppo", 2),
        System("rloo", 1),
    ]
    assert names(pair_systems(systems, against_sft=True)) == [
        ("ppo/seed=1", "grpo/seed=1"),
        ("ppo/seed=1", "rloo/seed=1"),
        ("grpo/seed=1", "rloo/seed=1"),
        ("ppo/seed=2", "grpo/seed=2"),
        ("ppo/seed=1", "sft"),
        ("grpo/seed=1", "sft"),
        ("rloo/seed=1", "sft"),
        ("ppo/seed=2", "sft"),
        ("grpo/seed=2", "sft"),
    ]
    assert all("sft" not in pair for pair in names(pair_systems(systems, against_sft=False)))


def test_the_order_in_which_runs_are_found_changes_nothing():
    systems = [System("ppo", 1), System("grpo", 1), System("grpo@k4", 1), SFT]
    assert pair_systems(systems, True) == pair_systems(list(reversed(systems)), True)


@pytest.mark.parametrize("systems", [[], [SFT], [System("ppo", 1), System("grpo", 2)]])
def test_nothing_to_compare_says_what_was_found(systems):
    with pytest.raises(UserError, match="no two systems to compare") as error:
        pair_systems(systems, against_sft=True)
    assert all(system.name in str(error.value) for system in systems)


def test_runs_can_be_left_out():
    partitions = ["sft/", "ppo/seed=1/", "grpo/seed=1/", "grpo@k4/seed=1/", "ppo/seed=2/", "study/"]
    assert set(select_systems(partitions, ["ppo", "grpo"], [1])) == {SFT, System("ppo", 1), System("grpo", 1)}


def test_a_variant_is_judged_only_by_name():
    partitions = ["sft/", "ppo/seed=1/", "grpo/seed=1/", "grpo@k4/seed=1/", "ppo@k4/seed=1/"]
    assert set(select_systems(partitions, None, None)) == {SFT, System("ppo", 1), System("grpo", 1)}
    assert set(select_systems(partitions, ["grpo@k4"], None)) == {SFT, System("grpo@k4", 1)}


def test_runs_on_different_shared_models_are_refused():
    one, other = {"sft": "a" * 64, "reward_model": "r" * 64}, {"sft": "b" * 64, "reward_model": "r" * 64}
    check_shared_models({System("ppo", 1): one, System("grpo", 1): one})
    with pytest.raises(UserError, match="do not share one sft") as error:
        check_shared_models({System("ppo", 1): one, System("grpo", 1): other, System("grpo", 2): one})
    assert "aaaaaaaaaaaa in grpo/seed=2, ppo/seed=1; bbbbbbbbbbbb in grpo/seed=1" in str(error.value)
    with pytest.raises(UserError, match="do not share one reward model"):
        check_shared_models({System("ppo", 1): one, System("grpo", 1): {**one, "reward_model": "x"}})


def test_a_fingerprint_that_a_run_does_not_have_is_not_compared():
    check_shared_models({System("ppo", 1): {"sft": "a", "reward_model": "r"}, SFT: {"sft": "a"}})


def answers(name, *prompt_ids, text="answer", gold=0.5):
    rows = [
        {
            "prompt_id": i,
            "prompt": f"prompt {i}",
            "response": f"{text} {i}",
            **({"gold_score": gold} if gold else {}),
        }
        for i in prompt_ids
    ]
    return Answers.of(System(name, 1), rows)


def test_answers_are_joined_by_prompt():
    rows = join(answers("ppo", "1", "2", "3"), answers("grpo", "3", "1", "4", text="other"), None, 42)
    assert [(row["prompt_id"], row["answer_a"], row["answer_b"]) for row in rows] == [
        ("1", "answer 1", "other 1"),
        ("3", "answer 3", "other 3"),
    ]
    assert rows[0]["system_a"] == "ppo/seed=1"
    assert rows[0]["has_gold"] is True


def test_answers_without_a_counterpart_are_counted(caplog):
    join(answers("ppo", "1", "2", "3"), answers("grpo", "3", "1", "4"), None, 42)
    assert "2 answers have no counterpart" in caplog.text


def test_one_answer_without_a_gold_score_leaves_the_pair_without():
    assert join(answers("ppo", "1"), answers("grpo", "1", gold=None), None, 42)[0]["has_gold"] is False


def test_every_pair_of_systems_is_judged_on_the_same_drawn_prompts():
    ids = [str(i) for i in range(100)]
    one = join(answers("ppo", *ids), answers("grpo", *ids), 10, 42)
    other = join(answers("ppo", *reversed(ids)), answers("rloo", *ids), 10, 42)
    assert len(one) == 10
    assert {row["prompt_id"] for row in one} == {row["prompt_id"] for row in other}
    assert {row["prompt_id"] for row in one} != {
        row["prompt_id"] for row in join(answers("ppo", *ids), answers("grpo", *ids), 10, 7)
    }
    assert len(join(answers("ppo", *ids), answers("grpo", *ids), 1000, 42)) == 100


def test_one_id_for_two_prompts_and_two_answers_to_one_prompt_are_refused():
    changed = Answers.of(System("grpo", 1), [{"prompt_id": "1", "prompt": "another", "response": "x"}])
    with pytest.raises(UserError, match="different prompts under the id '1'"):
        join(answers("ppo", "1"), changed, None, 42)
    with pytest.raises(UserError, match="answers prompt '1' twice"):
        answers("ppo", "1", "1")
