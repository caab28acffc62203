"""The judge's card on the page."""

from gemma_alignment.report.judge_section import judge_card


def test_the_judges_card_shows_what_is_known_of_the_judge(made):
    _, comparison = made()
    text = judge_card({
        **comparison["judge"],
        "people": {
            "asked": 50, "right": 40, "tied": 6, "wrong": 4, "people_tied": 0, "kappa": 0.62, "reason": None,
            "pairs": 50, "consistency": 0.9, "first_slot_share": 0.55, "first_slot_p": 0.4,
            "same_slot_twice": {"first": 4, "second": 1, "p": 0.375},
        },
        "longer_answer": {"won": 30, "decided": 40, "share": 0.75, "p": 0.002},
        "control_strings": {"ppo/seed=42": 3, "sft": 0},
        "calls": 720, "cost": 1.25,
        "about_the_judge": {"calls": 90, "cost": 0.5},
        "identical_answers": 4, "pairs": 1_000, "missing_pairs": 3, "questions": 1_700, "distinct_pairs": 850,
        "outdated": {"verdicts": 8, "beside": 0, "of": 90, "systems": [("ppo/seed=42", "sft")]},
    })  # fmt: skip
    for words in ("same verdict in 82.0% of 79 questions (κ 0.71)", "right in 40, tied in 6, wrong in 4 of 50 (κ 0.62)",
                  "75.0% of 40 decided distinct pairs (sign-flip p over prompts 0.002)", "ppo/seed=42: 3",
                  "720 calls for the pairs, 1.25 US dollars; 90 about the judge itself, 0.50 US dollars",
                  "1,004; 4 of them identical, a tie without a question; 3 without a result",
                  "1,700 questions on 850 distinct pairs of texts",
                  "8 of 90 verdicts are on answers that have changed since",
                  "an answer against itself must tie", "Same winner in both orders"):  # fmt: skip
        assert words in text, words
    assert "4 / 1 (p 0.38)" in text
    bare = judge_card({**comparison["judge"], "repeat": {"asked": 0}, "people": {"asked": 0}, "canaries": {}})
    assert "The same question once more" not in bare
    assert "people labelled" not in bare
    assert "known answer" not in bare
