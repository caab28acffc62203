"""The win rate at equal length, from the judged answers of a study."""

import numpy as np
import pytest
from fake_study import PROTOCOL, REPORTING

from gemma_alignment.config import build
from gemma_alignment.judging.pairing import resolve, verdicts_by_pair
from gemma_alignment.parameters.reporting import ProtocolParameters
from gemma_alignment.pipelines.reporting.nodes import render_report
from gemma_alignment.report.win_rates import POINTS, results_between, win_rate_block
from gemma_alignment.statistics.length_control import length_controlled

FIXED = build(ProtocolParameters, PROTOCOL, "protocol")


def test_the_rate_at_equal_length_is_fitted_to_the_judged_answers(made):
    study, comparison = made()
    found = comparison["win_rates"]["ppo_vs_grpo"]["at_equal_length"]
    outcomes = {key: resolve(*pair) for key, pair in verdicts_by_pair(study["judgements"]).items()}
    results = results_between(outcomes, "ppo", "grpo")
    prompts = [p for p in results[42] if all(results[s].get(p) is not None for s in results)]
    length = {
        name: {row["prompt_id"]: len(row["response"]) for row in files["responses.jsonl"]}
        for name, files in study["files"].items() if "responses.jsonl" in files
    }  # fmt: skip
    rows = [
        (POINTS[results[s][p]], length[f"ppo/seed={s}"][p] - length[f"grpo/seed={s}"][p], p)
        for s in results for p in prompts
    ]  # fmt: skip
    expected = length_controlled(*zip(*rows, strict=True))
    assert found["rate"] == pytest.approx(expected.rate, abs=1e-10)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-10)
    assert found["n"] == len(rows)
    text = render_report(comparison, *study.inputs()[:3], REPORTING)
    assert f"<b>{100 * found['rate']:.1f}%</b>" in text
    assert "rate at equal length" in text


def test_the_rate_against_sft_reads_the_lengths_of_sft(made):
    _, comparison = made()
    found = comparison["win_rates"]["ppo_vs_sft"]["at_equal_length"]
    assert found["n"] == comparison["win_rates"]["ppo_vs_sft"]["crossed"]["prompts"] * 3
    assert found["clusters"] == comparison["win_rates"]["ppo_vs_sft"]["crossed"]["prompts"]


def test_answers_without_lengths_leave_no_rate_at_equal_length():
    block = win_rate_block({1: {"p": "win", "q": "loss"}}, ("ppo", "grpo"), {}, FIXED, np.random.default_rng(0), 50)
    assert block["at_equal_length"]["rate"] is None
    assert "0 clusters" in block["at_equal_length"]["reason"]
