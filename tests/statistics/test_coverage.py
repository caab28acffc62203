"""The intervals hold what they say they hold: bounds, the table of the docs, and what others have simulated."""

import re
from pathlib import Path

import numpy as np
import pytest
from known_answers import STORED
from simulations import INTRODUCTION, VERDICT, Cell, simulate, table

from gemma_alignment.statistics.effect_size import cohens_d
from gemma_alignment.statistics.tests import permutation

DOCUMENT = Path(__file__).parents[2] / "docs" / "coverage.md"
ROW = re.compile(r"^\| (.+?) \| (.+?) \| ([0-9.]+) \| ([0-9.]+) \| (\w+) \| (.+?) \|$", re.M)
REQUIRED = ("Cohen’s d, noncentral t", "mean over seeds, Student t", "difference, Student t", "rate, t over seeds",
            "rate, clustered by prompt", "proportion, Wilson", "win rate, tie-aware", "difference, Welch",
            VERDICT)  # fmt: skip
"""What the table must hold to a bound."""


@pytest.fixture(scope="module")
def cells() -> dict[str, Cell]:
    found = simulate()
    assert len({cell.name for cell in found}) == len(found)
    return {cell.name: cell for cell in found}


def test_the_document_says_that_every_bound_is_held() -> None:
    """What the document holds, without simulating anew."""
    text = DOCUMENT.read_text("utf-8")
    assert text.startswith(INTRODUCTION)
    rows = ROW.findall(text)
    assert len(rows) > 120
    bounded = [row for row in rows if row[5] != "–"]
    for interval, setting, coverage, _, _, bound in bounded:
        low, high = map(float, bound.split(" to "))
        assert low <= float(coverage) <= high, f"{interval}, {setting}"
    assert set(REQUIRED) <= {row[0] for row in bounded}


@pytest.mark.slow
def test_every_bound_is_held(cells: dict[str, Cell]) -> None:
    assert [cell.name for cell in cells.values() if not cell.holds()] == []
    assert set(REQUIRED) <= {cell.interval for cell in cells.values() if cell.required}


@pytest.mark.slow
def test_the_document_is_what_is_simulated(cells: dict[str, Cell]) -> None:
    """Another machine may round another way at the edge of an interval, a few times in thousands."""
    there = {(row[0], row[1]): row for row in ROW.findall(DOCUMENT.read_text("utf-8"))}
    here = {(row[0], row[1]): row for row in ROW.findall(table(list(cells.values())))}
    assert there.keys() == here.keys()
    for key, row in here.items():
        assert float(there[key][2]) == pytest.approx(float(row[2]), abs=0.002), key
        assert float(there[key][3]) == pytest.approx(float(row[3]), rel=0.01), key
        assert there[key][4:] == row[4:], key


@pytest.mark.slow
def test_others_have_simulated_the_same(cells: dict[str, Cell]) -> None:
    """Their draws are unknown and some were few, so within two points; widths within four hundredths."""

    def same(name: str, coverage: float, width: float | None = None) -> None:
        assert cells[name].coverage == pytest.approx(coverage, abs=0.02), name
        if width is not None:
            assert cells[name].width == pytest.approx(width, rel=0.04), name

    stored = STORED["coverage_n3"]
    same("mean over seeds, bootstrap over seeds, n = 3", stored["percentile_boot"])
    same("mean over seeds, Student t, n = 3", stored["t"])
    same("mean over seeds, normal z, n = 3", stored["normal_z"])
    for key, row in STORED["simulated"]["d_ci_coverage_n3"].items():
        same(f"Cohen’s d, noncentral t, 3 v 3, d = {key}", row["nct"])
        same(f"Cohen’s d, bootstrap over seeds, 3 v 3, d = {key}", row["percentile_boot"])
        assert 0.0 < row["nonfinite_share"] <= 1 / 81  # of resamples with one value three times in both groups
    names = {"tie_score": "tie-aware", "wilson_half": "Wilson on half counts", "wald": "Wald"}
    for key, rows in STORED["more_tie_ci_coverage_and_width"].items():
        mix, n = key.split(" n=")
        for short, (coverage, width) in rows.items():
            same(f"win rate, {names[short]}, n = {n}, {mix}", coverage, width)
    names = {"pooled_wilson_n600": "pooled Wilson", "prompt_cluster": "clustered by prompt", "seed_t": "t over seeds",
             "twoway_z": "two-way z", "twoway_t2": "two-way t"}  # fmt: skip
    for key, rows in STORED["more_crossed_coverage"].items():
        sd = key.partition(",")[0].removeprefix("seed_sd=")
        for short, (coverage, width) in rows.items():
            same(f"rate, {names[short]}, seed sd {sd}, for new prompts and seeds", coverage, width)


@pytest.mark.slow
def test_full_separation_and_the_bias_of_d_at_three_seeds() -> None:
    """The only way to the least p of a permutation test, and why g stands beside d."""
    rng = np.random.default_rng(20261126)
    for key, expected in STORED["simulated"]["perm_3v3_full_separation_prob"].items():
        floor = [permutation(rng.normal(float(key), 1, 3), rng.normal(0, 1, 3)).p < 0.11 for _ in range(2_000)]
        assert np.mean(floor) == pytest.approx(expected, abs=0.035)
    found = [cohens_d(rng.normal(1, 1, 3), rng.normal(0, 1, 3)) for _ in range(20_000)]
    stored = STORED["simulated"]["bias_n3_delta1"]
    assert np.mean([e.d for e in found]) == pytest.approx(stored["mean_d"], abs=0.04)
    assert np.mean([e.g for e in found]) == pytest.approx(stored["mean_g"], abs=0.04)
    assert np.std([e.d for e in found]) == pytest.approx(stored["sd_d"], abs=0.15)
