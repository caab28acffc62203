"""The reward model's card: every number by hand, and what it says where something is not known."""

import json
import math

import numpy as np
import pytest
from fake_study import REPORTING, held_out_scores
from scipy import stats

from gemma_alignment.pipelines.reporting.nodes import render_report
from gemma_alignment.report.overoptimization import overoptimization
from gemma_alignment.report.reward_model import reward_model_card
from gemma_alignment.report.reward_section import tables
from gemma_alignment.report.runs import Run, RunKey
from gemma_alignment.statistics.intervals import wilson


def pair(output, tokens=(10, 10), written=(8.0, 2.0), gold=(None, None), genrm=None, prompt="p", source=None):
    row = {"prompt_id": prompt, "source": source}
    for i, side in enumerate(("chosen", "rejected")):
        row |= {
            f"output_{side}": output[i], f"tokens_{side}": tokens[i], f"written_{side}": written[i],
            f"gold_{side}": gold[i], f"asked_genrm_{side}": genrm is not None,
            f"genrm_{side}": None if genrm is None else genrm[i],
        }  # fmt: skip
    return row


def card(rows, seed=0):
    made = reward_model_card(rows, 0.95, np.random.default_rng(seed))
    return json.loads(json.dumps(made, allow_nan=False))


FOUR = [
    pair((2.0, 1.0), (30, 10), (9.0, 1.0), (8.0, 2.0), (9.0, 3.0), "a", "x"),  # right, chosen longer
    pair((0.0, 3.0), (10, 30), (8.0, 3.0), (7.0, 7.0), (4.0, 6.0), "b", "x"),  # wrong, rejected longer
    pair((1.5, 1.0), (20, 20), (7.0, 5.0), (3.0, 6.0), (5.0, 5.0), "c", "y"),  # right, against gold
    pair((4.0, 0.0), (12, 30), (6.0, 5.0), (9.0, 1.0), (None, 5.0), "d", None),  # right, rejected longer
]


def test_accuracy_is_the_share_of_positive_margins_with_wilsons_interval():
    found = card(FOUR)["accuracy"]
    assert (found["rate"], found["n"]) == (0.75, 4)
    assert (found["low"], found["high"]) == wilson(3, 4)
    assert found["over_prompts"]["estimate"] == 0.75
    assert 0.0 <= found["over_prompts"]["low"] < 0.75 < found["over_prompts"]["high"] <= 1.0


def test_equal_outputs_are_not_right():
    assert card([pair((1.0, 1.0)), pair((2.0, 1.0), prompt="q")])["accuracy"]["rate"] == 0.5


def test_auroc_compares_any_chosen_with_any_rejected_answer():
    chosen, rejected = [2.0, 0.0, 1.5, 4.0], [1.0, 3.0, 1.0, 0.0]
    u = stats.mannwhitneyu(chosen, rejected).statistic
    assert card(FOUR)["auroc"]["estimate"] == pytest.approx(u / 16)


def test_calibration_is_that_of_the_preferred_answers_probability():
    margins, right = [1.0, -3.0, 0.5, 4.0], [1, 0, 1, 1]
    sure = [1 / (1 + math.exp(-abs(m))) for m in margins]
    found = card(FOUR)["calibration"]
    assert found["brier"] == pytest.approx(np.mean([(p - y) ** 2 for p, y in zip(sure, right, strict=True)]))
    # the same as the squared error of sigma(margin) against "the chosen answer is better"
    assert found["brier"] == pytest.approx(np.mean([(1 / (1 + math.exp(-m)) - 1) ** 2 for m in margins]))
    assert found["mean_confidence"] == pytest.approx(np.mean(sure))
    # .731 and .622 stand alone in their bins; .953 and .982 share the last one
    shared = abs((0 + 1) / 2 - (sure[1] + sure[3]) / 2) * 2
    assert found["ece"] == pytest.approx((abs(1 - sure[0]) + abs(1 - sure[2]) + shared) / 4)
    assert [one["n"] for one in found["reliability"]] == [1, 1, 2]


def test_the_histogram_holds_every_pair():
    found = card(FOUR)["margins"]
    assert sum(found["counts"]) == 4
    assert (found["edges"][0], found["edges"][-1]) == (-3.0, 4.0)
    assert found["mean"] == pytest.approx((1 - 3 + 0.5 + 4) / 4)


def test_groups_by_length_written_margin_and_source():
    found = card(FOUR)
    lengths = {one["group"]: (one["rate"], one["n"]) for one in found["by_length"]}
    assert lengths == {
        "chosen answer longer, by up to 20 tokens": (1.0, 1),
        "same length": (1.0, 1),
        "rejected answer longer, by up to 20 tokens": (0.5, 2),
    }
    assert [one["group"] for one in found["by_length"]] == list(lengths)  # from the longest chosen one down
    wider = card([*FOUR, pair((0.0, 1.0), (90, 10), prompt="e"), pair((1.0, 0.0), (10, 90), prompt="f")])["by_length"]
    middle = np.median([20, 20, 18, 80, 80])
    assert {one["group"]: (one["rate"], one["n"]) for one in wider} == {
        f"chosen answer longer, by more than {middle:g} tokens": (0.0, 1),
        f"chosen answer longer, by up to {middle:g} tokens": (1.0, 1),
        "same length": (1.0, 1),
        f"rejected answer longer, by up to {middle:g} tokens": (0.5, 2),
        f"rejected answer longer, by more than {middle:g} tokens": (1.0, 1),
    }
    assert {one["group"]: (one["rate"], one["n"]) for one in found["by_source"]} == {"x": (0.5, 2), "y": (1.0, 1)}
    one_source = card([{**row, "source": None} for row in FOUR])
    quarters = {one["group"]: one["rate"] for one in one_source["by_written_margin"]}
    assert quarters == {"smallest quarter": 1.0, "second quarter": 1.0, "third quarter": 0.0, "largest quarter": 1.0}
    assert one_source["by_source"] == []


def test_quarters_are_ranked_within_a_source_since_scales_differ():
    """Votes of 0 to 3 and scores of 1 to 10: ranked together, every vote would be a small margin."""
    votes = [pair((1.0, 0.0), written=(w, 0.0), prompt=f"v{w}", source="votes") for w in (0.5, 1.0, 2.0, 3.0)]
    scores = [pair((0.0, 1.0), written=(w, 1.0), prompt=f"s{w}", source="scores") for w in (4.0, 6.0, 8.0, 9.0)]
    for one in card([*votes, *scores])["by_written_margin"]:
        assert (one["n"], one["rate"]) == (2, 0.5)


def test_length_is_measured_over_answers_and_over_pairs():
    found = card(FOUR)["length"]
    outputs, tokens = [2.0, 0.0, 1.5, 4.0, 1.0, 3.0, 1.0, 0.0], [30, 10, 20, 12, 10, 30, 20, 30]
    assert found["spearman"]["estimate"] == pytest.approx(stats.spearmanr(outputs, tokens).statistic)
    assert found["pearson"]["estimate"] == pytest.approx(stats.pearsonr(outputs, tokens).statistic)
    margins, gaps = [1.0, -3.0, 0.5, 4.0], [20, -20, 0, -18]
    assert found["of_differences"]["estimate"] == pytest.approx(stats.spearmanr(margins, gaps).statistic)
    assert (found["prefers_longer"]["rate"], found["prefers_longer"]["n"]) == (2 / 3, 3)
    assert found["chosen_longer"]["rate"] == 1 / 3


def test_gold_counts_pairs_that_it_tells_apart():
    found = card(FOUR)["gold"]
    assert found["pairs"] == 3  # the second pair has equal gold
    assert found["model"]["rate"] == found["written"]["rate"] == 2 / 3
    outputs, gold = [2.0, 0.0, 1.5, 4.0, 1.0, 3.0, 1.0, 0.0], [8.0, 7.0, 3.0, 9.0, 2.0, 7.0, 6.0, 1.0]
    assert found["spearman"]["estimate"] == pytest.approx(stats.spearmanr(outputs, gold).statistic)
    assert card([pair((1.0, 0.0)), pair((1.0, 0.0), prompt="q")])["gold"] is None


def test_the_second_judge_reads_the_same_pairs():
    found = card(FOUR)["genrm"]
    assert found["pairs"] == 4
    assert (found["read"]["rate"], found["read"]["n"]) == (7 / 8, 8)
    said = found["prefers_chosen"]
    assert (said["wins"], said["ties"], said["losses"], said["rate"]) == (1, 1, 1, 0.5)
    assert (found["with_reward_model"]["agreement"], found["with_reward_model"]["n"]) == (1.0, 2)
    assert "at least 4" in found["with_written"]["reason"]
    assert card([pair((1.0, 0.0))] * 2)["genrm"] is None


def test_a_second_judge_of_whom_nothing_can_be_read_says_so():
    def second(genrm):
        found = card([pair((1.0, 0.0), genrm=genrm, prompt=str(i)) for i in range(5)])
        comparison = {"reward_model_card": found, "overoptimization": None}
        return found["genrm"], str(tables(comparison)).partition("Second judge of the same pairs")[2]

    silent, text = second((None, None))
    assert (silent["read"]["count"], silent["read"]["n"]) == (0, 10)
    for name in ("prefers_chosen", "with_reward_model", "with_written"):
        assert silent[name]["reason"] == "0 of 10 replies could be read"
    assert text.count("not estimable: 0 of 10 replies could be read") == 4
    assert "–" not in text
    half, text = second((7.0, None))
    assert half["prefers_chosen"]["reason"] == "5 of 10 replies could be read, of no pair both"
    assert "–" not in text
    ties, text = second((7.0, 7.0))
    assert ties["with_reward_model"]["reason"] == "every pair is a tie of its scores"
    assert (ties["prefers_chosen"]["ties"], ties["prefers_chosen"]["rate"]) == (5, 0.5)


def test_too_little_to_say_anything_is_said():
    assert reward_model_card([], 0.95, np.random.default_rng(0)) is None
    one = card([pair((1.0, 0.0))])
    assert one["accuracy"]["rate"] == 1.0
    assert one["auroc"]["low"] is None
    assert "1 clusters" in one["auroc"]["reason"]
    assert "at least 4" in one["length"]["spearman"]["reason"]


def test_equal_seeds_give_equal_cards():
    assert card(held_out_scores()) == card(held_out_scores())
    assert card(held_out_scores())["auroc"] != card(held_out_scores(), seed=1)["auroc"]


def run(golds, scores=None, kls=None):
    history = [
        {"iteration": 10 * i, "eval/gold_mean": g, "eval/score_mean": (scores or golds)[i],
         "eval/kl_to_reference": (kls or [float(j) for j in range(len(golds))])[i]}
        for i, g in enumerate(golds)
    ]  # fmt: skip
    return Run(RunKey("ppo", 1), history=[*history, {"iteration": 99, "policy/entropy": 1.0}])


def test_past_the_best_is_read_from_the_curve():
    found = overoptimization({"ppo": {1: run([5.0, 8.0, 7.0], [0.0, 1.0, 2.0], [0.0, 4.0, 9.0])}, "grpo": {}})
    one = found["ppo"]["1"]
    assert one["best"] == {"iteration": 10, "score": 1.0, "gold": 8.0, "sqrt_kl": 2.0}
    assert (one["first"]["iteration"], one["last"]["iteration"], one["last"]["sqrt_kl"]) == (0, 20, 3.0)
    assert one["past_best"] == -1.0
    assert overoptimization({"ppo": {1: run([5.0])}}) is None
    assert overoptimization({"ppo": {1: Run(RunKey("ppo", 1))}}) is None


def test_the_card_is_on_the_page(made):
    study, comparison = made()
    text = render_report(comparison, *study.inputs()[:3], REPORTING)
    for words in ("The reward model’s card", "Expected calibration error", "Prefers the longer answer",
                  "Second judge of the same pairs", "Over-optimisation", "rm-margins", "rm-reliability",
                  "Prefers the truly better answer", "largest quarter", "essays"):  # fmt: skip
        assert words in text, words
    study, comparison = made(gold=False)
    text = render_report(comparison, *study.inputs()[:3], REPORTING)
    assert "Prefers the truly better answer" not in text
    assert "Over-optimisation" not in text
    without = {**comparison, "reward_model_card": None}
    assert "The reward model’s card" not in render_report(without, *study.inputs()[:3], REPORTING)
