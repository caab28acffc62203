"""The words: what interval and margin allow, and nothing else."""

import ast
import re
from pathlib import Path

import pytest
from fake_study import REPORTING

from gemma_alignment.pipelines.reporting.nodes import render_report
from gemma_alignment.report import verdict as verdict_module
from gemma_alignment.report.conclusions import keep_the_gate
from gemma_alignment.report.formatting import bounds, name_of, number, p_value, percent_bounds, signed
from gemma_alignment.report.verdict import judge_difference, magnitude, magnitude_phrase, what_seeds_show
from gemma_alignment.report.wording import headline, reading


@pytest.mark.parametrize(
    ("low", "high", "word", "phrase"),
    [
        (0.06, 0.20, "better", "better by more than the margin"),
        (0.01, 0.20, "better", "better, perhaps by less than the margin"),
        (0.01, 0.04, "better", "better, but by less than the margin"),
        (-0.20, -0.06, "worse", "worse by more than the margin"),
        (-0.20, -0.01, "worse", "worse, perhaps by less than the margin"),
        (-0.04, -0.01, "worse", "worse, but by less than the margin"),
        (-0.04, 0.05, "equivalent", "equivalent within the margin"),
        (-0.04, 0.06, "not resolved", "not resolved at this n"),
        (0.0, 0.20, "not resolved", "not resolved at this n"),
        (None, None, "not estimable", "not estimable"),
    ],
)
def test_every_place_an_interval_can_lie(low, high, word, phrase):
    verdict = judge_difference(low, high, 0.05)
    assert (verdict.word, verdict.phrase) == (word, phrase)


@pytest.mark.parametrize("interval", [(0.06, 0.2), (0.01, 0.2), (-0.2, -0.06), (-0.04, 0.04), (-0.1, 0.1)])
def test_swapping_the_methods_swaps_better_and_worse(interval):
    low, high = interval
    turned = {"better": "worse", "worse": "better"}
    one, other = judge_difference(low, high, 0.05), judge_difference(-high, -low, 0.05)
    assert other.word == turned.get(one.word, one.word)
    downwards = judge_difference(low, high, 0.05, higher_is_better=False)
    assert downwards.word == other.word


def test_a_metric_without_a_better_side_is_higher_or_lower():
    assert judge_difference(1.0, 2.0, 0.0, None).phrase.startswith("higher")
    assert judge_difference(-2.0, -1.0, 0.0, None).phrase.startswith("lower")


def test_without_a_margin_nothing_is_equivalent():
    assert judge_difference(0.0, 0.0, 0.0).word == "not resolved"
    with pytest.raises(ValueError, match="margin"):
        judge_difference(0.0, 1.0, -0.1)


def test_magnitude_is_said_of_both_ends():
    assert [magnitude(d) for d in (0.19, -0.2, 0.49, 0.5, -0.79, 0.8)] == [
        "negligible",
        "small",
        "small",
        "medium",
        "medium",
        "large",
    ]
    assert magnitude_phrase(-0.3, 2.0, "A", "B") == "from small and B higher to large and A higher"
    assert magnitude_phrase(1.0, 2.0, "A", "B") == "large and A higher at both ends"
    assert magnitude_phrase(None, None, "A", "B") is None


def test_three_seeds_say_their_limits_with_numbers():
    text = " ".join(what_seeds_show(3, 0.05, 0.8, [0.1, 0.25]))
    assert "d = 3.07" in text
    assert "0.1 for the permutation" in text
    assert "0.25 for the sign-flip" in text
    assert "out of reach of the permutation and the sign-flip test" in text
    assert "significant" not in text
    assert "out of reach" not in " ".join(what_seeds_show(8, 0.05, 0.8, [0.00016, 0.0078]))
    assert "not estimable" in what_seeds_show(1, 0.05, 0.8, [None, None])[0]


def block(low, high, holm_p=None, better=True):
    return {"difference": {"low": low, "high": high}, "holm_p": holm_p, "higher_is_better": better}


PROTOCOL = {"method_a": "ppo", "method_b": "grpo", "confidence": 0.95}


def test_holm_can_take_a_reading_back():
    assert reading(block(0.1, 0.2, 0.03), PROTOCOL) == "PPO better"
    assert reading(block(0.1, 0.2, 0.05), PROTOCOL) == "not resolved after Holm"
    assert reading(block(-0.2, -0.1, 0.01), PROTOCOL) == "GRPO better"
    assert reading(block(0.1, 0.2, 0.01, better=False), PROTOCOL) == "GRPO better"
    assert reading(block(0.1, 0.2, 0.01, better=None), PROTOCOL) == "PPO higher"
    assert reading(block(-0.1, 0.2, 0.01), PROTOCOL) == "not resolved at this n"
    assert reading(block(None, None), PROTOCOL) == "not estimable"


def test_the_primary_outcome_is_the_gate_to_the_secondary_family():
    closed = {**block(0.1, 0.2, 0.03), "gate": "not resolved"}
    assert reading(closed, PROTOCOL) == "not claimed, as the primary outcome is not resolved"
    assert reading({**closed, "gate": "equivalent"}, PROTOCOL).endswith("is equivalent")
    assert reading(block(0.1, 0.2, 0.03), PROTOCOL) == "PPO better"
    assert reading({**closed, "holm_p": 0.2}, PROTOCOL) == "not resolved after Holm"
    assert reading({**closed, **block(-0.1, 0.2, 0.01)}, PROTOCOL) == "not resolved at this n"


@pytest.mark.parametrize(("word", "primary", "gate"), [
    ("better", True, None), ("worse", True, None), ("not resolved", True, "not resolved"),
    ("equivalent", True, "equivalent"), ("not estimable", True, "not estimable"), ("not resolved", False, None),
])  # fmt: skip
def test_the_gate_opens_where_the_primary_outcome_tells_the_two_apart_or_was_not_judged(word, primary, gate):
    metrics = {"win_rate": {"role": "primary"}, "a": {"role": "secondary"}, "b": {"role": "descriptive"}}
    keep_the_gate(metrics, {"word": word, "primary": primary})
    assert metrics["a"] == {"role": "secondary", **({"gate": gate} if gate else {})}
    assert (metrics["win_rate"], metrics["b"]) == ({"role": "primary"}, {"role": "descriptive"})


@pytest.mark.parametrize(
    ("low", "high", "sentence"),
    [
        (0.06, 0.2, "PPO is better than GRPO by more than the margin."),
        (0.01, 0.2, "PPO is better than GRPO, perhaps by less than the margin."),
        (-0.2, -0.06, "GRPO is better than PPO by more than the margin."),
        (-0.04, -0.01, "GRPO is better than PPO, but by less than the margin."),
        (-0.01, 0.01, "PPO and GRPO are equivalent within the margin."),
        (-0.3, 0.3, "Whether PPO or GRPO is better is not resolved at this n."),
    ],
)
def test_headlines(low, high, sentence):
    verdict = judge_difference(low, high, 0.05)
    said = {"word": verdict.word, "phrase": verdict.phrase, "primary": True, "n": 3, "reason": None}
    assert headline(said, PROTOCOL) == sentence


def test_numbers_as_shown():
    assert number(-1234.5, 1) == "−1,234.5"
    assert number(-0.0001, 2) == "0.00"
    assert signed(0.25, 2) == "+0.25"
    assert signed(0.0001, 2) == "0.00"
    assert number(None) == "–"
    assert bounds(0.1, None) == "–"
    assert percent_bounds(0.5, 0.625) == "50.0 to 62.5%"
    assert p_value(0.1, 0.1) == "0.10 (least possible 0.1)"
    assert p_value(1e-9) == "< 0.0001"
    assert p_value(None, 0.1) == "–"
    assert (name_of("grpo@k4"), name_of("dr_grpo"), name_of("sft")) == ("GRPO@k4", "Dr. GRPO", "SFT")


CLAIM = re.compile(
    r"\b(better|worse|best|worst|superior|inferior|outperform\w*|beats?|significant\w*|improves?)\b", re.I
)
GRAMMAR = {"verdict.py", "wording.py"}
"""The one function, and the sentences around what it returns."""
HARMLESS = (
    "higher is better", "lower is better", "Better or worse depends on the metric", "points to the better side",
    "must not lose to a worse one", "Prefers the truly better answer", "below its best until then",
    "worst drawdown", "the worst one of the training", "below the best score until then", " beat ",
)  # fmt: skip
"""Said of two answers, of the direction of a metric or of a curve, never of a method."""


def literals(path):
    """Every text in a module that can reach the page: docstrings aside."""
    tree = ast.parse(path.read_text("utf-8"))
    documented = {
        id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documented:
            yield node.value


def test_no_module_has_words_of_praise_of_its_own():
    for path in sorted(Path(verdict_module.__file__).parent.glob("*.py")):
        if path.name in GRAMMAR:
            continue
        for text in literals(path):
            rest = text
            for harmless in HARMLESS:
                rest = re.sub(re.escape(harmless), "", rest, flags=re.I)
            identifier = re.fullmatch(r"[a-z_/.]+", text) is not None  # a key, not a sentence
            assert identifier or not CLAIM.search(rest), f"{path.name}: {text}"


def test_the_page_of_an_open_question_puts_neither_method_first(made):
    study, comparison = made()
    open_question = {**comparison["verdict"], "word": "not resolved", "phrase": "not resolved at this n"}
    metrics = {
        name: {**block, "difference": {**block["difference"], "low": -1.0, "high": 1.0}}
        for name, block in comparison["metrics"].items()
    }
    page = render_report({**comparison, "verdict": open_question, "metrics": metrics}, *study.inputs()[:3], REPORTING)
    words = re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]+>", " ", page, flags=re.S)
    headline_said = "Whether PPO or GRPO is better is not resolved at this n."
    assert headline_said in words
    rest = words.replace(headline_said, "")
    assert not re.search(r"\b(PPO|GRPO)\S* (is )?(better|worse|higher than|equivalent)", rest)
