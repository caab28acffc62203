"""The table of answers: scores, verdicts, and what its script sorts by."""

import re

from gemma_alignment.report.answer_table import answers
from gemma_alignment.report.runs import Run, RunKey

SFT, PPO, GRPO = RunKey("sft", None), RunKey("ppo", 42), RunKey("grpo", 42)


def rows(**scores):
    return [
        {"prompt_id": p, "prompt": f"ask {p}", "response": f"say {p}", "reward_model_score": s, "num_tokens": 3}
        for p, s in scores.items()
    ]


RUNS = {
    SFT: Run(SFT, responses=rows(x=0.5, y=-1.0)),
    PPO: Run(PPO, responses=rows(x=1.5, y=2.0)),
    GRPO: Run(GRPO, responses=rows(x=0.25, y=None)),
}
OUTCOMES = {
    ("ppo/seed=42", "grpo/seed=42", "x"): "loss",
    ("sft", "ppo/seed=42", "x"): "win",
    ("grpo/seed=42", "sft", "x"): "tie",
    ("ppo/seed=42", "grpo/seed=42", "y"): None,
    ("ppo/seed=123", "grpo/seed=123", "y"): "win",
}


def made(outcomes=OUTCOMES, most=10):
    return answers(RUNS, ("ppo", "grpo"), outcomes, most, 100)


def test_the_winner_is_named_whichever_side_the_judge_saw():
    text = made()
    first = text[text.index("ask x") : text.index("ask y")]
    assert "<b>GRPO beat PPO</b><small>SFT beat PPO</small><small>GRPO v SFT: tie</small>" in first


def test_no_result_and_other_seeds_are_no_verdict():
    text = made()
    assert "<b>PPO v GRPO: no result</b></td>" in text[text.index("ask y") :]


def test_rows_carry_place_scores_and_the_rank_of_the_verdict():
    assert re.findall(r'data-sort="([^"]+)"', made()) == ["0 0.5 1.5 0.25 2", "1 -1 2 -inf 3"]


def test_without_a_judge_there_is_no_verdict_to_show_or_choose():
    text = made({})
    assert "Verdict" not in text
    assert 'id="verdict"' not in text
    assert text.count("<button") == 4


def test_every_choice_of_a_verdict_is_one_that_rows_carry():
    text = made()
    offered = set(re.findall(r'<option value="([^"]+)"', text))
    assert set(re.findall(r'data-verdict="([^"]+)"', text)) <= offered


def test_no_more_prompts_than_asked():
    assert made(most=1).count("<tr data-sort") == 1
    assert made(most=0) is None
