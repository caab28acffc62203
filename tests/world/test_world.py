"""The embedded world: an exact gold score, and preferences that it mostly explains."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_alignment.world.gold import gold_score
from gemma_alignment.world.grammar import KINDS, NUMBERS, PHRASINGS, USES, Task, instruction, read_instruction
from gemma_alignment.world.preferences import generate_rows, unseen_tasks
from gemma_alignment.world.text import answer

PROMPT = "Name two fruits for a song."


@pytest.mark.parametrize(
    ("response", "points"),
    [
        ("Of course! Here are two fruits: apple and pear. I hope this helps.", 10.0),
        ("Here are two fruits: apple and pear. I hope this helps.", 8.5),  # no opener
        ("Of course! Here are two fruits: apple and pear.", 9.0),  # no closing
        ("Of course! Here are two fruits: apple. I hope this helps.", 7.0),  # one of two
        ("Of course! Here are two fruits: apple and apple. I hope this helps.", 6.0),  # a repeat, one of two
        ("Of course! Here are two fruits: apple, pear and saw. I hope this helps.", 9.0),  # a tool
        ("Of course! Here are two fruits: apple and pear. Well, you know. I hope this helps.", 9.25),  # filler
        ("Sure of! Here are two fruits: apple and pear. I hope this helps.", 7.0),  # a broken opener
        ("Of course! Of course! Here are two fruits: apple and pear. I hope this helps.", 8.5),  # twice
        ("Of course! Here are two fruits: apple and", 4.5),  # cut off
        ("", 0.0),
    ],
)
def test_gold_by_hand(response: str, points: float) -> None:
    assert gold_score(PROMPT, response) == pytest.approx(points)


@given(st.text(), st.text())
def test_gold_survives_any_text(prompt: str, response: str) -> None:
    assert 0 <= gold_score(prompt, response) <= 10
    assert 0 <= gold_score(PROMPT, response) <= 10


def test_every_instruction_is_read_back() -> None:
    for number in NUMBERS:
        for kind in KINDS:
            for phrasing in range(len(PHRASINGS)):
                for use in range(len(USES)):
                    assert read_instruction(instruction(Task(number, kind), phrasing, use)) == Task(number, kind)


def test_kinds_share_no_item() -> None:
    items = [item for kind in KINDS.values() for item in kind]
    assert len(items) == len(set(items))


def test_skill_raises_gold() -> None:
    means = []
    for skill in (0.0, 0.5, 1.0):
        chance = random.Random(1)
        means.append(sum(gold_score(PROMPT, answer(Task(2, "fruits"), skill, chance)) for _ in range(400)) / 400)
    assert means[0] + 1 < means[1] < means[2] - 1


def test_a_perfect_judge_agrees_with_about_nine_pairs_in_ten() -> None:
    rows = list(generate_rows(2000, noise=0.8, max_skill=0.6, corrupted_share=0.25, seed=3))
    gold = [
        tuple(gold_score(row["prompt"], row[side][-1]["content"]) for side in ("chosen", "rejected")) for row in rows
    ]
    agreement = sum((a > b) + 0.5 * (a == b) for a, b in gold) / len(gold)
    assert 0.86 < agreement < 0.94
    assert all(row["score_chosen"] >= row["score_rejected"] for row in rows)


@pytest.mark.parametrize("seed", range(20))
def test_unseen_tasks_leave_every_kind_and_every_number_to_be_trained_on(seed) -> None:
    for count in range(len(KINDS) + 1):
        held = unseen_tasks(count, seed)
        assert len(held) == len({task.kind for task in held}) == count
        rest = {(number, kind) for number in NUMBERS for kind in KINDS} - {(t.number, t.kind) for t in held}
        assert {kind for _, kind in rest} == set(KINDS)
        assert {number for number, _ in rest} == set(NUMBERS)
    assert len({task.number for task in unseen_tasks(3, seed)}) == 3
    assert unseen_tasks(3, seed) == unseen_tasks(3, seed) != unseen_tasks(3, seed + 100)


def test_more_unseen_tasks_than_kinds_are_refused() -> None:
    with pytest.raises(ValueError, match=f"world.unseen_tasks is {len(KINDS) + 1}, but there are {len(KINDS)} kinds"):
        unseen_tasks(len(KINDS) + 1, 1)


def test_the_source_of_a_row_is_whether_its_task_is_unseen() -> None:
    rows = list(generate_rows(300, 0.8, 0.7, 0.2, 5, unseen=4))
    held = unseen_tasks(4, 5)
    for row in rows:
        assert row["source"] == ("new task" if read_instruction(row["prompt"]) in held else "known task")
    assert len({row["source"] for row in rows}) == 2


def test_the_same_seed_gives_the_same_rows_and_another_does_not() -> None:
    first, again, other = (list(generate_rows(20, 1.0, 0.6, 0.25, seed)) for seed in (1, 1, 2))
    assert first == again != other
