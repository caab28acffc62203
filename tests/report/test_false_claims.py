"""One arm against itself: how often the report says that one side is above the other."""

import re
from pathlib import Path

import pytest
from false_claims import (
    HEADING,
    KINDS,
    PARTS,
    REPEATS,
    SEED_SDS,
    UNION,
    claims_a_side,
    exact_interval,
    false_claims,
    section,
)

from gemma_alignment.report.wording import effect_sentence

ALPHA = 0.05
DOCUMENT = Path(__file__).parents[2] / "docs" / "coverage.md"
ROW = re.compile(r"^\| ([0-9.]+) \| (.+?) \| (\d+) of 2,000 \|", re.M)


def check(found: dict[str, int], repeats: int) -> None:
    assert set(found) == set(KINDS)
    parts = [found[kind] for kind in PARTS]
    assert max(parts) <= found[UNION] <= sum(parts)
    for kind in KINDS:
        assert exact_interval(found[kind], repeats)[0] <= ALPHA, f"{kind}: {found[kind]} of {repeats}"


def documented() -> dict[float, dict[str, int]]:
    found: dict[float, dict[str, int]] = {}
    for seed_sd, kind, count in ROW.findall(DOCUMENT.read_text("utf-8").partition(HEADING)[2]):
        found.setdefault(float(seed_sd), {})[kind] = int(count)
    return found


def test_an_arm_is_hardly_ever_better_than_itself() -> None:
    check(false_claims(40, 0.03), 40)


def test_a_sentence_about_d_claims_where_it_names_one_side_alone(made) -> None:
    _, comparison = made()
    start = "Cohen’s d of the reward-model score is 2.00"
    assert claims_a_side(f"{start} [0.30, 4.00]: from small and PPO higher to large and PPO higher.")
    assert not claims_a_side(f"{start} [-0.30, 4.00]: from small and GRPO higher to large and PPO higher.")
    assert not claims_a_side(f"{start} [0.30, 4.00]: not resolved after Holm.")
    assert claims_a_side(effect_sentence(comparison)) == (comparison["metrics"]["eval/score_mean"]["holm_p"] < ALPHA)


def test_a_report_that_claims_too_often_would_be_seen() -> None:
    assert exact_interval(130, 2_000)[0] > ALPHA >= exact_interval(119, 2_000)[0]
    assert exact_interval(8, 40)[0] > ALPHA


def test_the_document_shows_no_more_false_claims_than_it_may() -> None:
    there = documented()
    assert set(there) == set(SEED_SDS)
    for found in there.values():
        check(found, REPEATS)
    assert DOCUMENT.read_text("utf-8").endswith(section(there))


@pytest.mark.slow
@pytest.mark.parametrize("seed_sd", SEED_SDS)
def test_two_thousand_studies_of_one_arm_against_itself(seed_sd: float) -> None:
    found = false_claims(REPEATS, seed_sd)
    check(found, REPEATS)
    for kind in KINDS:  # another machine may round another way at the edge of an interval
        assert abs(found[kind] - documented()[seed_sd][kind]) <= 2
