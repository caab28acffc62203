"""What more seeds would show, and aggregates for studies that have many."""

import numpy as np
import pytest
from fake_study import PROTOCOL, REPORTING, fake_study

from gemma_alignment.config import build
from gemma_alignment.parameters.reporting import ProtocolParameters
from gemma_alignment.pipelines.reporting.nodes import compare, render_report
from gemma_alignment.report.comparing import power_block
from gemma_alignment.report.robust import ENOUGH_RUNS, robust_blocks
from gemma_alignment.report.seeds import how_many, seeds_block, what_more_would_show
from gemma_alignment.report.seeds_section import seen as seen_table
from gemma_alignment.statistics.aggregate import iqm, probability_of_improvement
from gemma_alignment.statistics.power import unpaired_power

FIXED = build(ProtocolParameters, PROTOCOL, "protocol")


def metric(d, low, high):
    return {"cohens_d": {"d": d, "d_low": low, "d_high": high}, "label": "Score"}


def test_the_table_holds_the_powers_and_the_seeds_that_are_needed():
    block = seeds_block({}, 7, FIXED)
    assert list(block["table"]) == ["3", "4", "5", "6", "7", "8", "10", "20"]
    assert block["table"]["3"][block["effects"].index(2.0)] == pytest.approx(unpaired_power(2.0, 3))
    assert dict(zip(block["effects"], block["needed"], strict=True)) == {
        0.5: 64, 0.8: 26, 1.0: 17, 1.5: 9, 2.0: 6, 3.0: 4,
    }  # fmt: skip
    assert block["first_n"] == {"permutation": 4, "sign_flip": 6}
    assert "1" not in seeds_block({}, 1, FIXED)["table"]


def test_seeds_for_the_effect_seen_carry_its_uncertainty():
    metrics = {"a": metric(1.0, 0.5, 2.0), "b": metric(-1.0, -2.0, 0.3), "c": metric(None, None, None)}
    seen = seeds_block(metrics, 3, FIXED)
    assert seen["seen"] == {
        "a": {"d": 1.0, "seeds": 17, "fewest": 6, "most": 64, "reason": None},
        "b": {"d": -1.0, "seeds": 17, "fewest": 6, "most": None, "reason": None},
    }
    text = " ".join(what_more_would_show(seen, "b", "Score"))
    assert "64 at d = 0.5, 26 at d = 0.8, 17 at d = 1" in text
    assert "permutation test with 4, of the sign-flip test with 6" in text
    assert "17 seeds a method would find it with that power; over its interval, at least 6." in text
    assert len(what_more_would_show(seen, "c", "Score")) == 1


def test_an_effect_too_small_to_look_for_needs_more_than_ten_thousand():
    metrics = {"a": metric(0.01, -0.02, 0.03), "b": metric(0.03, 0.01, 0.5), "c": metric(0.0, -0.01, 0.01)}
    block = seeds_block(metrics, 3, FIXED)
    seen = block["seen"]
    numbers = [(one["seeds"], one["fewest"], one["most"]) for one in seen.values()]
    assert numbers == [(None, None, None), (None, 64, None), (None, None, None)]
    assert seen["a"]["reason"] == "more than 10,000 seeds a method would be needed for a d of 0.01"
    assert seen["c"]["reason"] == "no number of seeds finds a d of 0"
    assert power_block(3, 0.01, FIXED)["reason"] == seen["a"]["reason"]
    assert power_block(3, None, FIXED)["reason"] == "no d was seen"
    assert power_block(3, 1.0, FIXED)["reason"] is None
    text = what_more_would_show(block, "a", "Score")[1]
    assert text.startswith("If the d of 0.01 seen in the score were the true one, more than 10,000 seeds a method")
    assert len(what_more_would_show(block, "c", "Score")) == 1
    rows = str(seen_table({"seeds": block, "metrics": metrics})).split("<tr>")
    assert [one.count("more than 10,000") for one in rows[2:]] == [2, 1, 1]
    assert how_many(None, 0.01) == "more than 10,000"
    assert (how_many(None, 0.0), how_many(None, None), how_many(6281, 0.05)) == ("–", "–", "6,281")


def blocks(n, shift=0.0):
    rng = np.random.default_rng(5)
    values = {name: {str(s): float(v) for s, v in enumerate(rng.normal(k * shift, 1.0, n))}
              for k, name in enumerate(("grpo", "ppo"))}  # fmt: skip
    return {"m": {"per_seed": values}, "half": {"per_seed": {"ppo": values["ppo"]}}}


def test_robust_aggregates_wait_for_enough_runs():
    few = robust_blocks(blocks(ENOUGH_RUNS - 1), FIXED, np.random.default_rng(0))
    assert few == {
        "m": {"iqm": None, "probability_of_improvement": None,
              "reason": "n = 9: its bootstrap over runs needs at least 10 a method"}
    }  # fmt: skip
    made = blocks(ENOUGH_RUNS, shift=1.5)
    found = robust_blocks(made, FIXED, np.random.default_rng(0))["m"]
    ppo, grpo = (list(made["m"]["per_seed"][name].values()) for name in ("ppo", "grpo"))
    assert found["iqm"]["ppo"]["estimate"] == iqm(ppo)
    improvement = found["probability_of_improvement"]
    assert improvement["estimate"] == probability_of_improvement([[v] for v in ppo], [[v] for v in grpo]) > 0.5
    assert improvement["low"] < improvement["estimate"] < improvement["high"] <= 1.0
    assert found["reason"] is None


def test_ten_seeds_put_them_on_the_page_and_three_do_not(made):
    study = fake_study(seeds=tuple(range(10)), prompts=15, iterations=20)
    comparison, _ = compare(*study.inputs())
    text = render_report(comparison, *study.inputs()[:3], REPORTING)
    assert "P(PPO above GRPO)" in text
    assert not [row for row in comparison["not_estimable"] if "interquartile" in row["what"]]
    study, comparison = made()
    text = render_report(comparison, *study.inputs()[:3], REPORTING)
    assert "P(PPO above GRPO)" not in text
    assert "Power of the two-sided unpaired t test" in text
    assert "For 80% power one needs, seeds a method: 64 at d = 0.5" in text
