"""What is said beside the verdict when the ground under it is thin."""

import pytest

from gemma_alignment.report.cautions import cautions
from gemma_alignment.report.wording import question


def at_equal(axis, label, low, estimate, high):
    return {"axis": axis, "label": label, "difference": {"low": low, "estimate": estimate, "high": high}}


SOUND = {
    "verdict": {"word": "better"},
    "win_rates": {},
    "equal": [{"check": "same data (fingerprint)", "held": True, "detail": ""}],
    "protocol": {"method_a": "ppo", "method_b": "grpo"},
    "matched": {"eval/score_mean": [
        at_equal("budget/responses", "Responses sampled", 0.1, 0.2, 0.3),
        at_equal("memory/peak_mb", "Memory", None, None, None),
    ]},
    "judge": {
        "outdated": {"verdicts": 0, "beside": 0, "of": 90, "systems": []}, "judged": True, "consistency": 0.5,
        "canaries": {"injection": {"asked": 20, "right": 18}, "people": {"asked": 0, "right": 0}},
    },
    "reward_model": {
        "reward_model/accuracy": 0.8, "reward_model/accuracy_low": 0.75, "reward_model/accuracy_high": 0.84,
    },
    "sft": {"sft/perplexity_before": 3.0, "sft/perplexity_after": 2.5},
    "baseline": {"eval/gold_mean": 6.0},
    "metrics": {"eval/gold_mean": {"mean": {"ppo": 7.0, "grpo": 6.5}}},
}  # fmt: skip


def test_nothing_is_said_of_a_sound_study_or_of_what_is_not_known():
    assert cautions(SOUND) == []
    assert (
        cautions(
            {
                "verdict": {"word": "not estimable"},
                "win_rates": {},
                "equal": [],
                "judge": {"outdated": {}},
                "reward_model": {},
                "sft": {},
                "baseline": {},
                "metrics": {},
            }
        )
        == []
    )


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        (
            "judge",
            {"outdated": {"verdicts": 8, "beside": 2, "of": 90, "systems": [("ppo/seed=42", "sft")]}},
            "These and 2 beside them, all verdicts on PPO seed 42 v SFT, are left out",
        ),
        (
            "judge",
            {"canaries": {"injection": {"asked": 20, "right": 17}, "empty": {"asked": 20, "right": 20}}},
            "known answer (an answer must not lose to a worse one that commands the judge: 3 of 20): its verdicts",
        ),
        ("judge", {"consistency": 0.49}, "the same answer in both orders for 49.0% of the pairs, fewer than 50%"),
        ("reward_model", {"reward_model/accuracy": 0.55, "reward_model/accuracy_low": 0.5}, "chance (55"),
        ("sft", {"sft/perplexity_after": 3.0}, "raised the perplexity of held-out chosen responses, from 3"),
        ("metrics", {"eval/gold_mean": {"mean": {"ppo": 7.0, "grpo": 5.9}}}, "Under GRPO the true quality fell"),
    ],
)
def test_one_sentence_for_each_weakness(part, change, said):
    (sentence,) = cautions({**SOUND, part: {**SOUND[part], **change}})
    assert said in sentence


def test_of_a_judge_that_did_not_judge_nothing_is_said():
    failing = {"canaries": {"empty": {"asked": 20, "right": 0}}, "consistency": 0.0}
    assert cautions({**SOUND, "judge": {**SOUND["judge"], **failing, "judged": False}}) == []


def test_every_check_that_is_not_held_is_named_and_the_question_claims_no_equality():
    unequal = [
        {"check": "same SFT model (fingerprint)", "held": False, "detail": "a / b"},
        {"check": "same settings besides method and seed", "held": False, "detail": ""},
        {"check": "same data (fingerprint)", "held": None, "detail": "not recorded"},
        {"check": "same reward model (fingerprint)", "held": None, "detail": "not recorded by all: 2 of 6"},
    ]
    first, second, unknown = cautions({**SOUND, "equal": [*SOUND["equal"], *unequal]})
    assert first.startswith("Not held: same SFT model (fingerprint) (a / b). ")
    assert second.startswith("Not held: same settings besides method and seed. ")
    assert unknown == (
        "Not known to be equal: same data (fingerprint) (not recorded), same reward model (fingerprint) (not recorded "
        "by all: 2 of 6)."
    )
    assert question(SOUND).startswith("On the same SFT model, the same frozen reward model, the same prompts, seeds")
    for one in unequal:
        asked = question({**SOUND, "equal": [*SOUND["equal"], one]})
        assert asked == "How do PPO and GRPO compare, and how sure can we be?"


TURNED = [
    at_equal("iteration", "Iteration", 0.1, 0.2, 0.3),
    at_equal("budget/flops", "Floating-point operations", -0.3, -0.2, -0.1),
    at_equal("eval/kl_to_reference", "KL to the SFT model, nats per response", -0.3, -0.1, 0.1),
]


@pytest.mark.parametrize(("word", "side", "other"), [("better", 1, "GRPO"), ("worse", -1, "PPO")])
def test_a_verdict_that_another_equal_budget_would_turn_round_says_so(word, side, other):
    """The same curve read at equal operations may name the other method."""
    blocks = [
        {**one, "difference": {"estimate": side * one["difference"]["estimate"],
                               "low": min(side * one["difference"]["low"], side * one["difference"]["high"]),
                               "high": max(side * one["difference"]["low"], side * one["difference"]["high"])}}
        for one in TURNED
    ]  # fmt: skip
    study = {**SOUND, "verdict": {"word": word}, "matched": {"eval/score_mean": blocks}}
    (sentence,) = cautions(study)
    assert f"{other} has the higher reward-model score at equal floating-point operations or KL" in sentence
    assert "leaves out 0 at equal floating-point operations)" in sentence
    (open_,) = cautions({**study, "matched": {"eval/score_mean": blocks[::2]}})
    assert "at equal KL (no interval of the difference leaves out 0)" in open_
    (both,) = cautions({**study, "matched": {"eval/score_mean": blocks, "eval/gold_mean": blocks[::2]}})
    assert ", and the higher true quality (gold score) at equal KL (no interval of the difference leaves" in both
    assert cautions({**study, "verdict": {"word": "not resolved"}}) == []
    assert cautions({**study, "matched": {"eval/score_mean": blocks[:1]}}) == []


def test_what_the_verdict_itself_is_read_at_is_no_other_budget():
    own = [
        at_equal("iteration", "Iteration", -0.3, -0.2, -0.1),
        at_equal("budget/responses", "Responses sampled", -0.3, -0.2, -0.1),
    ]
    assert cautions({**SOUND, "matched": {"eval/score_mean": own}}) == []
    (sentence,) = cautions({**SOUND, "matched": {"eval/score_mean": [*own, *TURNED]}})
    assert "iteration " not in sentence and "responses sampled" not in sentence


def test_equivalent_methods_that_another_budget_tells_apart_are_said_to_be():
    study = {**SOUND, "verdict": {"word": "equivalent"}, "matched": {"eval/score_mean": TURNED}}
    (sentence,) = cautions(study)
    assert "GRPO has the higher reward-model score at equal floating-point operations (the interval of" in sentence
    assert "PPO has" not in sentence and "KL" not in sentence
    other = at_equal("memory/peak_mb", "Peak memory so far, MB", 0.1, 0.2, 0.3)
    (both,) = cautions({**study, "matched": {"eval/score_mean": [*TURNED, other]}})
    assert "PPO has the higher reward-model score at equal peak memory so far, MB (the interval" in both
    assert cautions({**study, "matched": {"eval/score_mean": TURNED[::2]}}) == []


def test_a_difference_without_an_interval_is_said_to_have_none():
    """With one run a method the table beside it has an estimate and no interval; with two zeros there is no spread."""
    alone = [at_equal("budget/flops", "Floating-point operations", None, -0.2, None)]
    (sentence,) = cautions({**SOUND, "matched": {"eval/score_mean": alone}})
    assert "at equal floating-point operations (the difference has no interval). " in sentence
    (sentence,) = cautions({**SOUND, "matched": {"eval/score_mean": [*alone, TURNED[2]]}})
    assert "operations or KL (no interval of the difference leaves out 0). " in sentence
