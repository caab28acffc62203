"""Whatever comes in from outside: no crash, nothing lost without a word, no text that becomes a control token."""

import json
import random
import string
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import toy
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gemma_alignment.config import ConfigError, build
from gemma_alignment.datasets.json_lines import JSONLinesDataset
from gemma_alignment.datasets.preference_source import PreferenceSource
from gemma_alignment.hooks.checks import check_parameters
from gemma_alignment.judging.parsing import parse_verdict
from gemma_alignment.modeling.saving import SavedModel
from gemma_alignment.parameters import SECTIONS, section_class
from gemma_alignment.pipelines.data_processing import nodes
from gemma_alignment.world.preferences import generate_rows

GOOD = next(iter(generate_rows(1, 1.0, 0.6, 0.0, 5)))
LONGEST = 20_000
PREFERENCES = {
    "source": "jsonl", "path": "here", "repository": None, "revision": None, "split": "train_prefs", "sample_size": 60,
    "eval_fraction": 0.2, "unseen_sources": [], "min_rows": 1, "score_range": [0, 10], "max_prompt_tokens": 96,
    "max_response_tokens": 96, "max_line_bytes": LONGEST,
}  # fmt: skip
MARKERS = ["<start_of_turn>", "<end_of_turn>", "<bos>", "<eos>", "<pad>", "<start_of_turn>model\n", "\x01user\x01"]
AWKWARD = [
    *MARKERS, "", " ", "\x00", "\u202e", "\ufeff", "e\u0301", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\ud800",
    "\u2028", "ﷺ" * 50, "\r\n", "a" * 4000, "\x7f\x1b[31m",
]  # fmt: skip
NUMBERS: list[Any] = [0, -1, 10, 11, 10**400, 1e308, float("nan"), float("inf"), True, None, "7", [7]]
texts = st.one_of(st.text(), st.sampled_from(AWKWARD), st.lists(st.sampled_from(AWKWARD)).map(" ".join))
values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.sampled_from(NUMBERS)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=8,
)


def deep(depth: int) -> bytes:
    """A good row with a field that no reader needs, nested."""
    return json.dumps(GOOD)[:-1].encode() + b', "more": ' + b"[" * depth + b"]" * depth + b"}"


def message(role: str, text: Any) -> dict[str, Any]:
    return {"role": role, "content": text}


def row_with(name: str, value: Any) -> bytes:
    return json.dumps({**GOOD, name: value}).encode()


def row_about(prompt: str, **changes: Any) -> bytes:
    """A row whose conversations start with its prompt."""
    sides = {side: [message("user", prompt), GOOD[side][-1]] for side in ("chosen", "rejected")}
    return json.dumps({**GOOD, **sides, "prompt": prompt, **changes}).encode()


rows = st.one_of(
    st.binary(max_size=60),
    values.map(lambda value: json.dumps(value).encode()),
    st.tuples(st.sampled_from([*GOOD, "other"]), values).map(lambda pair: row_with(*pair)),
    texts.map(row_about),
    texts.map(lambda text: row_with("prompt", text)),
    texts.map(lambda text: row_with("prompt_id", text)),
    texts.map(lambda text: row_with("chosen", [message("user", GOOD["prompt"]), message("assistant", text)])),
    st.sampled_from([10, 90, 500, 900, 980, 2000]).map(deep),
    st.sampled_from(NUMBERS).map(lambda number: row_with("score_chosen", number)),
    st.integers(LONGEST - 500, LONGEST + 500).map(lambda length: row_about("x" * length)),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """With a tokenizer in it."""
    path = tmp_path_factory.mktemp("fuzz")
    shape = SimpleNamespace(hidden_size=32, layers=1, heads=2, intermediate_size=32, max_positions=256)
    model = toy.tiny_gemma(shape, len(toy.chat().tokenizer), 0)
    SavedModel(model, toy.chat().tokenizer).save_pretrained(str(path / "tokenizer"))
    return path


def processed(folder: Any, lines: list[bytes]) -> tuple[int, list[Any], list[Any]]:
    """The user's file through the nodes and the datasets between them: rows in, kept, rejected."""
    file = folder / "mine.jsonl"
    file.write_bytes(b"\n".join(lines) + b"\n")
    source = SimpleNamespace(source="jsonl", path=str(file))
    good, bad = (JSONLinesDataset(str(folder / name)) for name in ("good.jsonl", "bad.jsonl"))
    kept, rejected = nodes.validate_rows(list(PreferenceSource().rows(source, 1)), PREFERENCES)
    rows, rejected, _ = nodes.limit_lengths(kept, rejected, toy.chat().tokenizer, PREFERENCES)
    good.save(rows)
    bad.save(rejected)
    count = sum(bool(line.strip()) for line in file.read_bytes().split(b"\n"))
    others = ({**GOOD, "prompt_id": f"p{i}", "prompt": f"p{i}"} for i in range(40))
    nodes.split_preferences([*rows, *others], PREFERENCES, 1)
    return count, list(good.load()), list(bad.load())


def check_accounted(folder: Any, lines: list[bytes]) -> tuple[int, int]:
    """Kept and rejected rows; together they are all that came in, each line once."""
    count, kept, rejected = processed(folder, [json.dumps(GOOD).encode(), *lines])
    assert count == len(kept) + len(rejected)
    assert len({item["line"] for item in rejected}) == len(rejected)
    assert all(item["reason"] for item in rejected)
    chat = toy.chat()
    for row in kept:
        check_no_control_token(chat, row["prompt"], row["chosen"][-1]["content"])
    return len(kept), len(rejected)


def check_no_control_token(chat: Any, prompt: str, answer: str) -> None:
    """The ids of a prompt hold the template's own control tokens and no more, those of an answer its end alone."""
    control = set(chat.tokenizer.all_special_ids) | {
        chat.tokenizer.convert_tokens_to_ids(name) for name in ("<start_of_turn>", "<end_of_turn>")
    }
    plain = [token for token in chat.encode_prompt("x") if token in control]
    assert [token for token in chat.encode_prompt(prompt) if token in control] == plain
    assert [token for token in chat.encode_response(answer) if token in control] == [chat.ending_id]


@given(st.lists(rows, max_size=6))
@example([row_with("score_chosen", 10**400)])
@example([row_about("\ud800")])
@example([row_with("prompt_id", "\udfff")])
@example([deep(900), deep(980), deep(3000)])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_row_is_kept_or_rejected(folder: Any, lines: list[bytes]) -> None:
    check_accounted(folder, lines)


def test_a_line_of_ten_megabytes_is_rejected_and_its_neighbours_are_not(folder: Any) -> None:
    neighbour = row_about("Name two other things.", prompt_id="next")
    assert check_accounted(folder, [row_with("prompt", "x" * 10_000_000), neighbour]) == (2, 1)


@given(texts, texts)
@settings(max_examples=100, deadline=None)
def test_no_text_becomes_a_control_token(prompt: str, answer: str) -> None:
    clean = [text.encode("utf-8", "replace").decode() for text in (prompt, answer)]
    check_no_control_token(toy.chat(), *clean)


def test_prompts_that_fill_the_context_are_kept_and_those_beyond_are_rejected(folder: Any) -> None:
    """``max_prompt_tokens`` to the token; what cannot fit the model at all is refused before anything runs."""
    chat = toy.chat()
    frame = len(chat.encode_prompt("x"))
    word = next(w for w in string.ascii_letters if len(chat.encode_prompt(f"x{w * 5}")) > frame)
    lengths = {}
    for n in range(1, 200):
        lengths.setdefault(len(chat.encode_prompt(" ".join([word] * n))), n)
    fits, over = lengths[96], lengths[97 if 97 in lengths else 98]
    kept, rejected = check_accounted(
        folder,
        [row_about(" ".join([word] * n), prompt_id=str(n)) for n in (fits, over)],
    )
    assert (kept, rejected) == (2, 1)


def configured() -> dict[str, Any]:
    from pathlib import Path

    from kedro.config import OmegaConfigLoader

    from gemma_alignment.settings import CONFIG_LOADER_ARGS

    conf = Path(__file__).parents[1] / "conf"
    found: dict[str, Any] = OmegaConfigLoader(str(conf), env="base", **CONFIG_LOADER_ARGS)["parameters"]
    return found


def test_a_context_that_prompt_and_answer_do_not_fit_is_refused() -> None:
    parameters = configured()
    parameters["preferences"]["max_prompt_tokens"] = 500
    with pytest.raises(ConfigError, match=r"preferences.max_prompt_tokens 500 .* tiny_model.max_positions 512"):
        check_parameters(parameters, configured(), {})


@given(st.sampled_from(sorted(SECTIONS)), st.data())
@settings(max_examples=150, deadline=None)
def test_the_parameter_builder_builds_or_says_what_is_wrong(section: str, data: st.DataObject) -> None:
    """Any value in the place of any key, at any depth."""
    mapping = PARAMETERS[section]
    key = data.draw(st.sampled_from([*mapping, "unknown"]))
    changed = {**mapping, key: data.draw(values)}
    try:
        build(section_class(section), changed, section)
    except ConfigError as error:
        assert section in str(error)


PARAMETERS = configured()


@given(st.one_of(texts, values.map(lambda value: json.dumps({"verdict": value})), values.map(json.dumps)))
@settings(max_examples=200, deadline=None)
def test_a_reply_is_a_verdict_or_none(reply: str) -> None:
    assert parse_verdict(reply) in ("first", "second", "tie", None)


@given(st.one_of(texts, st.tuples(texts, st.from_regex(r"Score: \d{1,4}(\.\d{1,400})?/10"), texts).map("".join)))
@settings(max_examples=200, deadline=None)
def test_a_genrm_answer_is_a_score_or_none(text: str) -> None:
    score = nodes.parse_score(text)
    assert score is None or score >= 0


def fuzzed(chance: random.Random, count: int) -> Iterator[bytes]:
    """Rows as they might come: whole ones, damaged ones, awkward ones, cut, doubled and mixed up."""
    good = list(generate_rows(200, 1.0, 0.6, 0.1, 9))
    for number in range(count):
        row = {**chance.choice(good), "prompt_id": f"id{number % 4000}"}
        kind = chance.randrange(8)
        if kind == 0:
            row[chance.choice([*row, "new"])] = chance.choice([*AWKWARD, *NUMBERS, [], {}, [[]], {"a": {"b": []}}])
        elif kind == 1:
            row.pop(chance.choice(list(row)))
        elif kind == 2:
            side = chance.choice(["chosen", "rejected"])
            text = "".join(chance.choices([*AWKWARD, "word "], k=4))
            row[side] = [message("user", row["prompt"]), message("assistant", text)]
        elif kind == 3:
            row["prompt"] += "".join(chance.choices(AWKWARD, k=3))
            for side in ("chosen", "rejected"):
                row[side] = [message("user", row["prompt"]), *row[side][1:]]
        line = json.dumps(row, ensure_ascii=chance.random() < 0.5).encode("utf-8", "surrogatepass")
        if kind == 4:
            damaged = bytearray(line)
            for _ in range(chance.randrange(1, 6)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            line = bytes(damaged).replace(b"\n", b" ")
        elif kind == 5:
            line = line[: chance.randrange(len(line))] or b"{"
        elif kind == 6 and chance.random() < 0.1:
            line = deep(chance.choice([50, 150, 950, 5000]))
        yield line


def replies(chance: random.Random, count: int) -> Iterator[str]:
    """What a judge might answer."""
    whole = ['{"reason": "clearer", "verdict": "1"}', "```json\n{\"verdict\": \"2\"}\n```", "tie", '{"winner": 2}']
    for _ in range(count):
        reply = list(chance.choice(whole))
        for _ in range(chance.randrange(5)):
            place = chance.randrange(len(reply))
            what = chance.choice([*AWKWARD, *string.printable, "{", "[", "}" * 5, "Score: 8.5/10", "[" * 3000])
            reply[place : place + chance.randrange(3)] = what
            reply = reply or [" "]
        yield "".join(reply)


@pytest.mark.slow
def test_ten_thousand_fuzzed_rows_and_replies_are_no_surprise(folder: Any, record_property: Any) -> None:
    begun = time.monotonic()
    kept, rejected = check_accounted(folder, list(fuzzed(random.Random(8), 10_000)))
    assert kept + rejected == 10_001
    assert kept > 1000 and rejected > 1000
    found = [(parse_verdict(reply), nodes.parse_score(reply)) for reply in replies(random.Random(8), 10_000)]
    verdicts = sum(verdict is not None for verdict, _ in found)
    assert 1000 < verdicts < 9000
    record_property("figures", f"{kept=} {rejected=} {verdicts=} seconds={time.monotonic() - begun:.0f}")
