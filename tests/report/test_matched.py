"""Readings at equal budgets: by hand on short curves, and against the final values where they must agree."""

import json

import pytest
from fake_study import PROTOCOL, REPORTING

from gemma_alignment.config import build
from gemma_alignment.parameters.reporting import ProtocolParameters
from gemma_alignment.pipelines.reporting.nodes import render_report
from gemma_alignment.report.budget_section import tables
from gemma_alignment.report.matched import KL, Point, matched, points_of, read_at
from gemma_alignment.report.runs import Run, RunKey
from gemma_alignment.statistics.effect_size import cohens_d
from gemma_alignment.statistics.intervals import welch_difference

FIXED = build(ProtocolParameters, PROTOCOL, "protocol")


def run(scores, kls, tokens, memory, family="ppo", seed=1):
    """Evaluations at iterations 0, 10, 20, ...; budgets as they are after them."""
    history, timing = [], []
    for i, score in enumerate(scores):
        row = {"iteration": 10 * i, "eval/score_mean": score, "eval/kl_to_reference": kls[i]}
        if i:
            row["budget/tokens_generated"] = tokens[i]
            timing.append({"iteration": 10 * i, "memory/peak_mb": memory[i], "budget/seconds": 60.0 * i})
        history.append(row)
    return Run(RunKey(family, seed), history=history, timing=timing)


PPO = run([0.0, 1.0, 2.0], [0.0, 1.0, 4.0], [0, 100, 200], [0, 900, 950])
GRPO = run([0.0, 3.0, 4.0], [0.0, 1.0, 2.0], [0, 300, 600], [0, 500, 600], "grpo")
OTHER = run([0.0, 2.0, 3.0], [0.0, 2.0, 3.0], [0, 100, 250], [0, 900, 950], seed=2)
FOURTH = run([0.0, 5.0, 6.0], [0.0, 2.0, 2.5], [0, 300, 500], [0, 500, 700], "grpo", 2)


def blocks(by_family):
    return {block["axis"]: block for block in matched(by_family, FIXED)["eval/score_mean"]}


def test_the_level_is_the_largest_that_every_run_reaches_and_values_are_interpolated():
    found = blocks({"ppo": {1: PPO, 2: OTHER}, "grpo": {1: GRPO, 2: FOURTH}})
    tokens = found["budget/tokens_generated"]
    assert tokens["level"] == 200
    assert tokens["per_seed"]["ppo"] == {"1": 2.0, "2": pytest.approx(2.0 + 100 / 150)}
    assert tokens["per_seed"]["grpo"] == {"1": 2.0, "2": pytest.approx(5.0 * 2 / 3)}
    assert tokens["iterations"]["grpo"]["1"] == pytest.approx(20 / 3)
    kl = found[KL]
    assert kl["level"] == 2.0
    assert kl["per_seed"] == {
        "ppo": {"1": pytest.approx(1.0 + 1 / 3), "2": 2.0}, "grpo": {"1": 4.0, "2": 5.0},
    }  # fmt: skip


def test_equal_iterations_are_the_last_values_and_statistics_are_those_of_the_readings():
    found = blocks({"ppo": {1: PPO, 2: OTHER}, "grpo": {1: GRPO, 2: FOURTH}})["iteration"]
    assert found["level"] == 20
    assert found["per_seed"] == {"ppo": {"1": 2.0, "2": 3.0}, "grpo": {"1": 4.0, "2": 6.0}}
    assert found["difference"]["low"] == welch_difference([2.0, 3.0], [4.0, 6.0]).low
    assert found["cohens_d"]["d"] == cohens_d([2.0, 3.0], [4.0, 6.0]).d < 0


def test_a_run_beyond_the_level_from_the_start_has_no_value_and_a_reason():
    """PPO needs more memory at its first reading than GRPO ever does."""
    memory = blocks({"ppo": {1: PPO}, "grpo": {1: GRPO}})["memory/peak_mb"]
    assert memory["level"] == 600
    assert memory["per_seed"] == {"ppo": {}, "grpo": {"1": 4.0}}
    assert memory["mean"]["ppo"] is memory["difference"]["low"] is None
    assert memory["reason"] == "beyond it from the first evaluation on: ppo/seed=1"


def test_no_mean_and_no_difference_of_the_seeds_that_happen_to_be_there():
    """One of two PPO runs is beyond the level from its first reading on."""
    lean = run([0.0, 2.0, 3.0], [0.0, 2.0, 3.0], [0, 100, 250], [0, 300, 950], seed=2)
    memory = blocks({"ppo": {1: PPO, 2: lean}, "grpo": {1: GRPO, 2: FOURTH}})["memory/peak_mb"]
    assert memory["per_seed"]["ppo"].keys() == {"2"}
    assert memory["n"] == {"ppo": 2, "grpo": 2}
    assert memory["mean"]["ppo"] is None and memory["mean"]["grpo"] is not None
    for part, number in (("difference", "estimate"), ("cohens_d", "d")):
        assert memory[part][number] is None
        assert memory[part]["reason"] == memory["reason"]
        assert memory["reason"].endswith("ppo/seed=1")
    comparison = {"protocol": PROTOCOL, "matched": {"eval/score_mean": [memory]}}
    text = str(tables(comparison))
    assert "<small>1 of 2 seeds</small><small>seed 2: " in text
    assert "<small>2 seeds</small><small>iteration " in text


def test_what_some_run_did_not_record_is_not_compared():
    bare = Run(RunKey("grpo", 1), history=[{"iteration": 0, "eval/score_mean": 1.0, KL: 0.0}])
    assert set(blocks({"ppo": {1: PPO}, "grpo": {1: bare}})) == {"iteration", KL}
    assert matched({"ppo": {1: PPO}, "grpo": {}}, FIXED) == {}
    assert matched({"ppo": {}, "grpo": {}}, FIXED) == {}
    assert "eval/gold_mean" not in matched({"ppo": {1: PPO}, "grpo": {1: GRPO}}, FIXED)


def test_the_first_crossing_counts_where_a_budget_goes_back():
    """KL may fall again: it is read where it first came so far."""
    points = [Point(0.0, 0.0, 0.0), Point(2.0, 1.0, 10.0), Point(1.0, 5.0, 20.0), Point(3.0, 9.0, 30.0)]
    assert read_at(points, 1.0) == Point(1.0, 0.5, 5.0)
    assert read_at(points, 2.5) == Point(2.5, 8.0, 27.5)
    assert read_at(points, 0.0) == points[0]
    assert read_at(points, 3.1) is None
    assert read_at([Point(1.0, 1.0, 1.0)], 0.5) is None
    assert read_at([], 0.5) is None


def test_nothing_is_spent_before_the_first_update_but_memory_is_not_known():
    assert [point.spent for point in points_of(PPO, "eval/score_mean", "budget/seconds")] == [0.0, 1.0, 2.0]
    assert [point.spent for point in points_of(PPO, "eval/score_mean", "memory/peak_mb")] == [900, 950]


def test_a_study_is_read_at_every_kind_of_budget(made):
    study, comparison = made()
    for metric in ("eval/score_mean", "eval/gold_mean"):
        axes = [block["axis"] for block in comparison["matched"][metric]]
        assert axes == [
            "iteration", "budget/responses", "budget/tokens_generated", "budget/flops", "budget/seconds",
            "memory/peak_mb", KL,
        ]  # fmt: skip
        at_end = comparison["matched"][metric][0]
        assert at_end["level"] == 80
        assert at_end["per_seed"] == comparison["metrics"][metric]["per_seed"]
        flops = comparison["matched"][metric][3]
        assert max(flops["iterations"]["ppo"].values()) < 80 == pytest.approx(max(flops["iterations"]["grpo"].values()))
    json.dumps(comparison["matched"], allow_nan=False)
    text = render_report(comparison, *study.inputs()[:3], REPORTING)
    assert "At equal budgets" in text
    assert "KL to the SFT model, nats per response" in text
    assert "beyond it from the first evaluation on" in text


def test_the_result_table_says_where_its_numbers_were_read(made):
    study, comparison = made()
    text = render_report(comparison, *study.inputs()[:3], REPORTING)
    assert text.count("<td>iteration 80</td>") == 5
    assert text.count("<td>answers of iteration 80</td>") == 1
    assert "Spent by iteration 80, mean over seeds. PPO: 7,680 responses, 0.21 million tokens" in text
    assert "minutes, 918 MB at the peak. GRPO:" in text
