"""The offline judge: deterministic, unbiased where it should be, biased by what it is told to be."""

import math
import statistics

import pytest

from gemma_alignment.judging.client import Request, digest
from gemma_alignment.judging.parsing import parse_verdict
from gemma_alignment.judging.rubric import RubricJudge, standard_normal

SCORES = {"good": 0.8, "fair": 0.6, "fair too": 0.6, "bad": 0.1, "": 0.0}


def rubric(noise=0.0, position_bias=0.0, tie_margin=0.0, seed=42, score=lambda p, r: SCORES[r]):
    return RubricJudge(score, noise=noise, position_bias=position_bias, tie_margin=tie_margin, seed=seed)


def verdict(judge, first, second, prompt="p"):
    return parse_verdict(judge.judge(prompt, first, second).text)


def test_the_higher_score_wins_in_either_slot():
    assert verdict(rubric(), "good", "bad") == "first"
    assert verdict(rubric(), "bad", "good") == "second"
    assert verdict(rubric(), "fair", "fair too") == "tie"


def test_margins_up_to_the_tie_margin_are_ties():
    assert verdict(rubric(tie_margin=0.25), "good", "fair") == "tie"
    assert verdict(rubric(tie_margin=0.25), "fair", "good") == "tie"
    assert verdict(rubric(tie_margin=0.15), "good", "fair") == "first"


def test_a_position_bias_favours_the_first_slot_only():
    judge = rubric(position_bias=0.3)
    assert (verdict(judge, "good", "fair"), verdict(judge, "fair", "good")) == ("first", "first")
    assert (verdict(judge, "good", "bad"), verdict(judge, "bad", "good")) == ("first", "second")


def test_replies_depend_on_nothing_but_the_request_and_the_seed():
    replies = [rubric(noise=0.5).judge(f"p{i}", "good", "fair").text for i in range(50)]
    assert replies == [rubric(noise=0.5).judge(f"p{i}", "good", "fair").text for i in range(50)]
    assert replies != [rubric(noise=0.5, seed=43).judge(f"p{i}", "good", "fair").text for i in range(50)]
    assert len(set(replies)) > 1


def test_the_two_orders_have_noise_of_their_own():
    judge = rubric(noise=1.0)
    pairs = [
        (verdict(judge, "fair", "fair too", f"p{i}"), verdict(judge, "fair too", "fair", f"p{i}")) for i in range(400)
    ]
    same_slot = sum(ab == ba for ab, ba in pairs)
    assert 160 < same_slot < 240  # half of them, four standard deviations either way


def test_equal_answers_tie_under_any_noise():
    assert {verdict(rubric(noise=10.0), "good", "good", f"p{i}") for i in range(100)} == {"tie"}


def test_how_often_noise_turns_a_verdict_follows_the_normal_law():
    judge = rubric(noise=0.2)
    n = 4000
    wrong = sum(verdict(judge, "good", "fair", f"p{i}") == "second" for i in range(n))
    expected = statistics.NormalDist().cdf(-1.0)  # a difference of 0.2 against a noise of 0.2
    assert wrong / n == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / n))


def test_the_noise_is_standard_normal():
    draws = [standard_normal(digest(i)) for i in range(20_000)]
    assert statistics.fmean(draws) == pytest.approx(0, abs=4 / math.sqrt(20_000))
    assert statistics.pstdev(draws) == pytest.approx(1, abs=0.02)
    below = sum(draw < 1 for draw in draws) / len(draws)
    assert below == pytest.approx(statistics.NormalDist().cdf(1), abs=0.015)
    assert math.isfinite(standard_normal("0" * 64))
    assert math.isfinite(standard_normal("f" * 64))


def test_each_answer_is_scored_once():
    calls = []
    judge = rubric(score=lambda p, r: calls.append((p, r)) or len(r))
    for first, second in [("a", "bb"), ("bb", "a"), ("a", "ccc")]:
        judge.judge("p", first, second)
    assert sorted(calls) == [("p", "a"), ("p", "bb"), ("p", "ccc")]


def test_keys_of_contents_do_not_run_together():
    assert Request("p", "a", "b").content_key != Request("p", "b", "a").content_key
    assert Request("pa", "", "b").content_key != Request("p", "a", "b").content_key
    assert Request("p", '","', "").content_key != Request("p", "", '","').content_key
    assert len(Request("\ud800", "é", "𝔊").content_key) == 64
