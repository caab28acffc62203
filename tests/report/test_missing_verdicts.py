"""What a judge leaves without a verdict can take the headline back, and is named on the first screen."""

import numpy as np
import pytest
from fake_study import PROTOCOL, fake_study

from gemma_alignment.config import build
from gemma_alignment.parameters.reporting import ProtocolParameters
from gemma_alignment.pipelines.reporting.nodes import compare
from gemma_alignment.report.cautions import cautions
from gemma_alignment.report.conclusions import study_metrics, verdict_block, widest
from gemma_alignment.report.win_rates import MIRROR, win_rate_block
from gemma_alignment.report.wording import evidence, headline
from gemma_alignment.statistics.win_rate import crossed

SEEDS = (42, 123, 777)
FIXED = build(ProtocolParameters, PROTOCOL, "protocol")


def results(missing, wins, losses, prompts=100):
    """So many of the prompts without a verdict, then wins, ties, losses; the seeds differ by one win each."""
    return {
        seed: {
            f"p{i}": None if i < missing
            else "win" if i < missing + wins + k
            else "loss" if i >= prompts - losses
            else "tie"
            for i in range(prompts)
        }
        for k, seed in enumerate(SEEDS)
    }  # fmt: skip


def judged(found):
    block = win_rate_block(found, ("ppo", "grpo"), {}, FIXED, np.random.default_rng(1), 20)
    return block, verdict_block({"win_rates": {"ppo_vs_grpo": block}, "metrics": {}}, FIXED)


def turned(found):
    return {s: {p: None if r is None else MIRROR[r] for p, r in one.items()} for s, one in found.items()}


@pytest.mark.parametrize("turn", [lambda found: found, turned])
def test_a_headline_that_what_is_missing_could_take_back_is_not_resolved(turn):
    """40 of 100 prompts that the judge gave up on, where the other method may have won all."""
    block, verdict = judged(turn(results(40, 30, 8)))
    assert widest(block["crossed"])[0] > 0.55 or widest(block["crossed"])[1] < 0.45
    assert (verdict["word"], verdict["phrase"]) == ("not resolved", "not resolved at this n")
    said = headline(verdict, PROTOCOL)
    assert said.startswith("Whether PPO or GRPO is better is not resolved: verdicts are missing (120 of 300), and were")
    assert ("lost by PPO" if block["crossed"]["estimate"] > 0.5 else "won by PPO") in said


def test_one_seed_may_lack_them_alone():
    found = results(40, 30, 8)
    found[42] |= dict.fromkeys([f"p{i}" for i in range(40)], "tie")
    found[123] |= dict.fromkeys([f"p{i}" for i in range(40)], "tie")
    block, verdict = judged(found)
    assert (block["if_missing"]["missing"], block["prompts_left_out_of_crossed"]) == (40, 40)
    assert verdict["word"] == "not resolved"
    unjudged = results(0, 60, 8) | {777: dict.fromkeys(results(0, 60, 8)[777])}
    block, verdict = judged(unjudged)
    assert (block["crossed"]["seeds"], block["if_missing"]["lost"]["seeds"]) == (2, 3)
    assert verdict["word"] == "not resolved"


def test_equivalence_that_what_is_missing_could_take_back_is_not_resolved():
    assert judged(results(0, 3, 3))[1]["word"] == "equivalent"
    assert judged(results(1, 2, 2))[1]["word"] == "equivalent"
    assert judged(results(20, 3, 3))[1]["word"] == "not resolved"


def test_few_missing_verdicts_leave_the_word_and_may_weaken_the_phrase():
    assert judged(results(0, 45, 15))[1]["phrase"] == "better by more than the margin"
    _, verdict = judged(results(6, 45, 15))
    assert (verdict["phrase"], verdict["reason"]) == ("better, perhaps by less than the margin", None)
    assert verdict["low"] > 0.55  # what is printed is the interval of what was judged
    assert judged(results(1, 60, 5))[1]["phrase"] == "better by more than the margin"


def test_what_would_speak_for_the_winner_takes_nothing_back():
    """One verdict more for the winner makes the rates of all seeds equal, and then no interval is left."""
    found = {seed: results(0, 45, 15)[42] | {"p0": "tie"} for seed in SEEDS}
    found[777] |= {"p0": None, "p1": "tie"}
    block, verdict = judged(found)
    assert (widest(block["if_missing"]["won"]), verdict["word"]) == ((None, None), "better")
    block, verdict = judged(turned(found))
    assert (widest(block["if_missing"]["lost"]), verdict["word"]) == ((None, None), "worse")


def test_the_bounds_are_those_of_the_filled_matrix():
    block, _ = judged(results(40, 30, 8))
    lost = np.array([[0.0] * 40 + [1.0] * (30 + k) + [0.5] * (22 - k) + [0.0] * 8 for k in range(3)])
    expected = crossed(lost, 0.95)
    assert block["if_missing"]["lost"]["estimate"] == pytest.approx(lost.mean(), abs=1e-12)
    assert block["if_missing"]["won"]["estimate"] == pytest.approx(lost.mean() + 0.4, abs=1e-12)
    assert widest(block["if_missing"]["lost"]) == (
        min(expected.prompt_low, expected.seed_low, expected.joint_low),
        max(expected.prompt_high, expected.seed_high, expected.joint_high),
    )  # fmt: skip
    assert judged(results(0, 30, 8))[0]["if_missing"] == {"missing": 0, "of": 300}


def test_where_no_prompt_is_left_the_score_is_no_stand_in():
    """Something was judged, so the primary outcome is open; the score's headline is for what was not judged."""
    found = {seed: {f"p{i}": "win" if i % 3 == k else None for i in range(30)} for k, seed in enumerate(SEEDS)}
    block, verdict = judged(found)
    assert (verdict["primary"], verdict["word"], verdict["estimate"], verdict["n"]) == (True, "not estimable", None, 3)
    comparison = {"verdict": verdict, "protocol": PROTOCOL, "win_rates": {"ppo_vs_grpo": block}, "metrics": {}}
    assert evidence(comparison) == "No number for it: no prompt has a verdict in every seed."
    assert study_metrics(comparison) == {}


def test_the_first_screen_names_what_is_missing_with_its_share():
    study = fake_study(prompts=40)
    for row in study["judgements"]:
        asked = (row["system_a"], row["system_b"], row["order"])
        if int(row["prompt_id"][1:]) < 4 and asked == ("ppo/seed=42", "grpo/seed=42", "ab"):
            row["verdict"] = "unparsed"
    comparison, _ = compare(*study.inputs())
    (said,) = [one for one in comparison["cautions"] if one.startswith("Verdicts are missing")]
    block = comparison["win_rates"]["ppo_vs_grpo"]["if_missing"]
    assert block["missing"] >= 4 and block["of"] == 120
    assert f"{block['missing']} of 120 on PPO v GRPO ({block['missing'] / 1.2:.1f}%)" in said
    assert f"lost, that rate would be {block['lost']['estimate']:.1%}" in said
    for one in comparison["win_rates"].values():
        one["if_missing"] = {"missing": 0, "of": 120}
    assert not [one for one in cautions(comparison) if one.startswith("Verdicts are missing")]
