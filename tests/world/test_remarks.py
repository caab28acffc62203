"""A reader's remark names every fault of an answer, and nothing else."""

import random

import pytest

from gemma_alignment.world.gold import gold_score
from gemma_alignment.world.grammar import Task
from gemma_alignment.world.preferences import dialogue
from gemma_alignment.world.remarks import faults, remark

TASK, PROMPT = Task(2, "fruits"), "Name two fruits for a song."
GOOD = "Of course! Here are two fruits: apple and pear. I hope this helps."


@pytest.mark.parametrize(
    ("response", "found"),
    [
        (GOOD, []),
        (GOOD.replace("Of course! ", ""), ["A kind word first, please."]),
        (GOOD.replace(" I hope this helps.", ""), ["It has no closing."]),
        (GOOD.replace("pear", "saw"), ["Not one of the fruits: saw.", "I asked for two, you gave one."]),
        (GOOD.replace("pear", "apple"), ["You said it twice: apple.", "I asked for two, you gave one."]),
        (GOOD.replace("apple and", "apple, plum and"), ["I asked for two, you gave three."]),
        (GOOD.replace("I hope", "Anyway, whatever. I hope"), ["Please leave out the small talk."]),
        (GOOD.replace("Of course!", "Sure of!"), ["A kind word first, please.", "Some of it makes no sense."]),
        ("", ["Where is the list?", "A kind word first, please.", "It has no closing."]),
    ],
)
def test_faults_by_hand(response: str, found: list[str]) -> None:
    assert faults(TASK, response) == found


def test_points_are_the_gold_score_where_the_reader_does_not_err() -> None:
    assert remark(PROMPT, GOOD, 0.0, random.Random(1)) == "I give it 10 points. Thank you, that is right."
    worse = GOOD.replace("pear", "apple")
    assert gold_score(PROMPT, worse) == 6.0
    assert remark(PROMPT, worse, 0.0, random.Random(1)).startswith("I give it 6 points. You said it twice")
    given = {remark(PROMPT, worse, 2.0, random.Random(seed)).split()[3] for seed in range(20)}
    assert len(given) > 3


def test_no_fault_is_a_full_score_and_the_other_way_round() -> None:
    for seed in range(300):
        text, said = dialogue(PROMPT, 0.0, 1.0, 0.25, random.Random(seed))
        assert ("that is right" in said) == (gold_score(PROMPT, text) == 10.0), text


def test_a_text_of_no_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="no instruction"):
        remark("Hello", GOOD, 0.0, random.Random(1))
