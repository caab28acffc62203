"""One arm against itself: how often the report says that one side is above the other."""

import pytest
from false_claims import KINDS, false_claims
from scipy import stats

ALPHA = 0.05


def lower_end(claims: int, repeats: int) -> float:
    """Of the exact 95% interval of the rate."""
    return float(stats.binomtest(claims, repeats).proportion_ci(0.95, "exact").low)


def check(repeats: int, seed_sd: float) -> dict[str, int]:
    found = false_claims(repeats, seed_sd)
    assert set(found) == set(KINDS)
    for kind in KINDS:
        assert lower_end(found[kind], repeats) <= ALPHA, f"{kind}: {found[kind]} of {repeats}"
    return dict(found)


def test_an_arm_is_hardly_ever_better_than_itself() -> None:
    check(40, 0.03)


def test_a_report_that_claims_too_often_would_be_seen() -> None:
    assert lower_end(130, 2_000) > ALPHA >= lower_end(119, 2_000)
    assert lower_end(8, 40) > ALPHA


@pytest.mark.slow
@pytest.mark.parametrize("seed_sd", [0.0, 0.03, 0.08])
def test_two_thousand_studies_of_one_arm_against_itself(seed_sd: float) -> None:
    check(2_000, seed_sd)
