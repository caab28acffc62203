"""The seeds below a mean: a table of twenty seeds is as wide as one of three."""

import pytest

from gemma_alignment.report.per_seed import FEW, below, order, ranges

VALUES = {str(seed): 0.5 + seed / 100 for seed in range(1, 21)}


def test_few_stand_in_order_and_of_many_the_ends():
    few = {seed: VALUES[seed] for seed in ("3", "1", "2")}
    assert "<small" in below(few, 2) and ">0.53 · 0.51 · 0.52<" in below(few, 2)
    assert ">0.51 to 0.70<" in below(VALUES, 2)
    at_most = dict(list(VALUES.items())[:FEW])
    assert " to " not in below(at_most, 2) and below(at_most, 2).count(" · ") == FEW - 1


def test_every_seed_is_there_by_its_name():
    assert "seed 17: 0.67" in below(VALUES, 2)


@pytest.mark.parametrize(
    ("seeds", "said"),
    [
        ([], ""),
        ([42, 123, 777], "42, 123, 777"),
        ([3, 1, 2], "1-3"),
        ([*range(1, 21), 42], "1-20, 42"),
        ([1, 2, 4, 5, 7], "1-2, 4-5, 7"),
    ],
)
def test_ranges(seeds, said):
    assert ranges(seeds) == said


def test_a_note_names_few_and_counts_many():
    assert order([1, 2]) == "1 · 2"
    assert order(range(20)) == "20 seeds, the least and the largest"
