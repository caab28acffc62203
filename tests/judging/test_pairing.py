"""The swap rule: all sixteen cells, its symmetry, and real verdicts to the last count."""

import itertools

import pytest

from gemma_alignment.judging.pairing import resolve, verdicts_by_pair

VERDICTS = ("first", "second", "tie", None)

TABLE = {
    ("first", "first"): "tie",
    ("first", "second"): "win",
    ("first", "tie"): "tie",
    ("first", None): None,
    ("second", "first"): "loss",
    ("second", "second"): "tie",
    ("second", "tie"): "tie",
    ("second", None): None,
    ("tie", "first"): "tie",
    ("tie", "second"): "tie",
    ("tie", "tie"): "tie",
    ("tie", None): None,
    (None, "first"): None,
    (None, "second"): None,
    (None, "tie"): None,
    (None, None): None,
}


def test_the_table_names_every_cell():
    assert set(TABLE) == set(itertools.product(VERDICTS, VERDICTS))


@pytest.mark.parametrize(("ab", "ba"), TABLE)
def test_every_cell(ab, ba):
    assert resolve(ab, ba) == TABLE[ab, ba]


@pytest.mark.parametrize(("ab", "ba"), TABLE)
def test_naming_the_systems_the_other_way_round_mirrors_the_result(ab, ba):
    mirrored = {"win": "loss", "loss": "win", "tie": "tie", None: None}
    assert resolve(ba, ab) == mirrored[resolve(ab, ba)]


@pytest.mark.parametrize("wrong", ["1", "win", "unparsed", "", 1])
def test_anything_else_is_refused(wrong):
    with pytest.raises(ValueError, match="a verdict is"):
        resolve(wrong, "first")
    with pytest.raises(ValueError, match="a verdict is"):
        resolve(None, wrong)


def test_rows_are_brought_together_by_pair():
    rows = [
        {"system_a": "p", "system_b": "g", "prompt_id": "1", "order": "ba", "verdict": "second"},
        {"system_a": "p", "system_b": "g", "prompt_id": "1", "order": "ab", "verdict": "first"},
        {"system_a": "p", "system_b": "g", "prompt_id": "2", "order": "ab", "verdict": "unparsed"},
    ]
    assert verdicts_by_pair(rows) == {("p", "g", "1"): ("first", "second"), ("p", "g", "2"): (None, None)}
