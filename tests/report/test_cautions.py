"""What is said beside the verdict when the ground under it is thin."""

import pytest

from gemma_alignment.report.cautions import cautions

SOUND = {
    "judge": {"outdated": {"verdicts": 0, "beside": 0, "of": 90, "systems": []}},
    "reward_model": {
        "reward_model/accuracy": 0.8, "reward_model/accuracy_low": 0.75, "reward_model/accuracy_high": 0.84,
    },
    "sft": {"sft/perplexity_before": 3.0, "sft/perplexity_after": 2.5},
    "baseline": {"eval/gold_mean": 6.0},
    "metrics": {"eval/gold_mean": {"mean": {"ppo": 7.0, "grpo": 6.5}}},
}  # fmt: skip


def test_nothing_is_said_of_a_sound_study_or_of_what_is_not_known():
    assert cautions(SOUND) == []
    assert cautions({"judge": {"outdated": {}}, "reward_model": {}, "sft": {}, "baseline": {}, "metrics": {}}) == []


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        (
            "judge",
            {"outdated": {"verdicts": 8, "beside": 2, "of": 90, "systems": [("ppo/seed=42", "sft")]}},
            "These and 2 beside them, all verdicts on PPO seed 42 v SFT, are left out",
        ),
        ("reward_model", {"reward_model/accuracy": 0.55, "reward_model/accuracy_low": 0.5}, "chance (55"),
        ("sft", {"sft/perplexity_after": 3.0}, "raised the perplexity of held-out chosen responses, from 3"),
        ("metrics", {"eval/gold_mean": {"mean": {"ppo": 7.0, "grpo": 5.9}}}, "Under GRPO the true quality fell"),
    ],
)
def test_one_sentence_for_each_weakness(part, change, said):
    (sentence,) = cautions({**SOUND, part: {**SOUND[part], **change}})
    assert said in sentence
