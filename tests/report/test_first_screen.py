"""The first screen says no more than the tables below it."""

import pytest
from fake_study import fake_study

from gemma_alignment.parameters.reporting import ProtocolParameters
from gemma_alignment.pipelines.reporting.nodes import compare
from gemma_alignment.report.conclusions import verdict_block, widest
from gemma_alignment.report.wording import effect_sentence, headline


@pytest.fixture
def unjudged():
    comparison, _ = compare(*fake_study(judged=False).inputs())
    fixed = {key: value for key, value in comparison["protocol"].items() if key != "fingerprint"}
    return comparison, ProtocolParameters(**fixed)


def with_holm(comparison, p):
    name = comparison["protocol"]["effect_size_metric"]
    return {**comparison, "metrics": {**comparison["metrics"], name: {**comparison["metrics"][name], "holm_p": p}}}


def test_d_is_given_the_word_of_the_table(unjudged):
    comparison, _ = unjudged
    assert "higher" in effect_sentence(with_holm(comparison, 0.01))
    taken_back = effect_sentence(with_holm(comparison, 0.20))
    assert "not resolved after Holm" in taken_back and "higher" not in taken_back and "large" not in taken_back


def test_d_is_given_no_word_where_the_primary_outcome_tells_nothing(made):
    _, resolved = made()
    assert (resolved["verdict"]["word"], "higher" in effect_sentence(resolved)) == ("better", True)
    study = fake_study()
    for row in study["judgements"]:
        if "sft" not in (row["system_a"], row["system_b"]):
            row["verdict"] = "first"  # each order contradicts the other: ties alone
    comparison, _ = compare(*study.inputs())
    assert (comparison["verdict"]["primary"], comparison["verdict"]["word"]) == (True, "not estimable")
    d = comparison["metrics"]["eval/score_mean"]["cohens_d"]["d"]
    assert d == resolved["metrics"]["eval/score_mean"]["cohens_d"]["d"]
    sentence = effect_sentence(comparison)
    assert f"{d:.2f}" in sentence and "higher" not in sentence and "large" not in sentence
    assert "not claimed, as the primary outcome is not estimable" in sentence


def test_a_headline_from_the_score_needs_what_its_table_needs(unjudged):
    comparison, protocol = unjudged
    assert verdict_block(with_holm(comparison, 0.01), protocol)["word"] in ("better", "worse")
    assert verdict_block(with_holm(comparison, 0.20), protocol)["word"] == "not resolved"


@pytest.mark.parametrize(("word", "phrase"), [
    ("better", "better by more than the margin"), ("worse", "worse by more than the margin"),
    ("equivalent", "equivalent within the margin"),
])  # fmt: skip
def test_what_is_not_judged_speaks_of_the_score_and_of_these_prompts_alone(word, phrase):
    """Its interval is over seeds: nothing stands for new prompts, and no judge for what the score means."""
    protocol = {"method_a": "ppo", "method_b": "grpo"}
    verdict = {"word": word, "phrase": phrase, "n": 3, "primary": False}
    assert headline(verdict, protocol).startswith("By the reward model’s own score on these held-out prompts, ")
    assert "prompts" not in headline({**verdict, "primary": True}, protocol)


def test_seeds_of_one_and_the_same_rate_say_nothing_of_new_seeds():
    prompts = {"low": 0.55, "high": 0.62, "reason": None}
    seeds = {"low": 0.52, "high": 0.65, "reason": None}
    both = {"low": 0.53, "high": 0.64, "reason": None}
    found = {"seeds": 3, "over_prompts": prompts, "over_seeds": seeds, "jointly": both}
    assert widest(found) == (0.52, 0.65)
    assert widest({**found, "jointly": {**both, "low": 0.51, "high": 0.66}}) == (0.51, 0.66)
    equal = {"low": None, "high": None, "reason": "no variance among the values"}
    assert widest({**found, "over_seeds": equal}) == (None, None)
