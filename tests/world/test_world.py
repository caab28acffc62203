"""The embedded world: an exact gold score, and preferences that it mostly explains."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_alignment.world.gold import gold_score
from gemma_alignment.world.grammar import KINDS, NUMBERS, PHRASINGS, USES, Task, instruction, read_instruction
from gemma_alignment.world.preferences import generate_rows
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


def test_the_same_seed_gives_the_same_rows_and_another_does_not() -> None:
    first, again, other = (list(generate_rows(20, 1.0, 0.6, 0.25, seed)) for seed in (1, 1, 2))
    assert first == again != other
