"""A reply is a verdict only where it is nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_alignment.judging.parsing import parse_verdict


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ('{"reason": "clearer", "verdict": "1"}', "first"),
        ('{"reason": "clearer", "verdict": "2"}', "second"),
        ('{"reason": "equal", "verdict": "tie"}', "tie"),
        ('{"winner": "2", "reason": ""}', "second"),
        ('{"verdict": "1", "winner": "1"}', "first"),
        ('{"verdict": 1}', "first"),
        ('{"verdict": 2}', "second"),
        ('{"verdict": " Tie "}', "tie"),
        ('\n  {"verdict": "1"}  \n', "first"),
        ('```json\n{"verdict": "2"}\n```', "second"),
        ('```\n{"verdict": "tie"}\n```', "tie"),
        ("1", "first"),
        (" 2\n", "second"),
        ("tie", "tie"),
    ],
)
def test_a_verdict_is_read(reply, verdict):
    assert parse_verdict(reply) == verdict


@pytest.mark.parametrize(
    "reply",
    [
        None,
        "",
        "   ",
        b'{"verdict": "1"}',
        1,
        True,
        ["1"],
        {"verdict": "1"},
        "I'm sorry, but I can't help with that.",
        "null",
        "[]",
        '["1"]',
        '"first"',
        '{"reason": "no verdict"}',
        '{"verdict": "3"}',
        '{"verdict": "A"}',
        '{"verdict": ""}',
        '{"verdict": null}',
        '{"verdict": true}',
        '{"verdict": false}',
        '{"verdict": 3}',
        '{"verdict": 0}',
        '{"verdict": 1.5}',
        '{"verdict": ["1"]}',
        '{"verdict": {"winner": "1"}}',
        '{"reason": "cut of',
        '{"reason": "cut off", "verdict": "1',
        '{"verdict": "1"} {"verdict": "2"}',
        '{"verdict": "1"}{"verdict": "1"}',
        '{"verdict": "1", "verdict": "2"}',
        '{"verdict": "1", "verdict": "1"}',
        '{"verdict": "1", "winner": "2"}',
        '{"verdict": "1", "winner": "nobody"}',
        'The better answer is {"verdict": "1"}.',
        "[[A]]",
        "verdict: 1",
        "```",
        "``````",
        "```json```",
        '```python\n{"verdict": "1"}\n```',
        "[" * 100_000,
        '{"verdict": ' + "9" * 5_000 + "}",
        '{"verdict": NaN}',
    ],
)
def test_anything_else_is_no_verdict_and_no_tie(reply):
    assert parse_verdict(reply) is None


def test_a_verdict_quoted_from_an_answer_counts_for_nothing():
    """The reason may repeat what an answer said; the verdict beside it is the one that counts."""
    quoted = '{"reason": "Answer 1 says {\\"verdict\\": \\"1\\"} of itself.", "verdict": "2"}'
    assert parse_verdict(quoted) == "second"
    assert parse_verdict(json.dumps({"reason": '"verdict": "1"', "answer": {"verdict": "1"}})) is None


@given(st.text())
def test_text_never_raises(text):
    assert parse_verdict(text) in ("first", "second", "tie", None)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["verdict", "winner", "reason"]), inner),
    max_leaves=8,
)


@given(json_values)
def test_json_is_a_verdict_exactly_when_its_keys_state_one(value):
    allowed = {"1": "first", "2": "second", "tie": "tie"}
    found = parse_verdict(json.dumps(value))
    if isinstance(value, dict) and found is not None:
        stated = [str(value[key]).strip().lower() for key in ("verdict", "winner") if key in value]
        assert stated
        assert all(allowed.get(one) == found for one in stated)
        assert not any(isinstance(value.get(key), bool) for key in ("verdict", "winner"))
    elif found is not None:
        assert type(value) is int
        assert value in (1, 2)


@given(st.text(), st.sampled_from(["1", "2", "tie"]))
def test_any_reason_leaves_the_verdict_alone(reason, slot):
    expected = {"1": "first", "2": "second", "tie": "tie"}[slot]
    assert parse_verdict(json.dumps({"reason": reason, "verdict": slot})) == expected


@given(st.text(min_size=1), st.sampled_from(['{"verdict": "1"}', "tie"]))
def test_text_around_a_verdict_makes_it_none(extra, stated):
    if extra.strip() and not extra.strip().startswith("`"):
        assert parse_verdict(f"{stated} {extra} words") is None
        assert parse_verdict(f"words {extra} {stated}") is None
