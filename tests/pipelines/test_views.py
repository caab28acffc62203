"""Rows are read when a step asks for them: however many there are, their places alone are held."""

import json
import random
import tracemalloc
from types import SimpleNamespace

import pytest
import torch
import toy

from gemma_alignment.datasets.json_lines import JSONLinesDataset, JSONLinesFile
from gemma_alignment.datasets.preference_source import PreferenceSource
from gemma_alignment.pipelines.data_processing import nodes as data
from gemma_alignment.pipelines.data_processing.lines import Lines
from gemma_alignment.pipelines.data_processing.seen import Seen
from gemma_alignment.pipelines.reward_model import nodes as reward_model
from gemma_alignment.pipelines.sft import nodes as sft
from gemma_alignment.pipelines.views import View
from gemma_alignment.training.seeding import generator, prompt_order, shuffled
from gemma_alignment.world.preferences import generate_rows


class Counted(list):
    """Rows that count how often one is read."""

    reads = 0

    def __getitem__(self, index):
        self.reads += 1
        return super().__getitem__(index)


CHAT = SimpleNamespace(encode_prompt=lambda text: ["p", text], encode_response=lambda text: ["r", text])


@pytest.fixture
def rows():
    return Counted(generate_rows(40, 0.8, 0.7, 0.25, 1))


def test_a_view_is_made_when_asked_for():
    rows = Counted("abcdef")
    view = View(rows, str.upper, [4, 0, 2])
    assert (len(view), rows.reads) == (3, 0)
    assert (view[0], view[-1], rows.reads) == ("E", "C", 2)
    part = view[1:]
    assert rows.reads == 2
    assert list(part) == ["A", "C"] and list(View(rows, str.upper)[::-2]) == ["F", "D", "B"]
    with pytest.raises(IndexError):
        view[3]
    assert list(view) == ["E", "A", "C"], "iteration ends where the rows do"


def test_the_mixture_is_the_shares_of_both_in_a_drawn_order(rows):
    genrm = [{"messages": [{"content": f"q{i}"}, {"content": f"a{i}"}]} for i in range(40)]
    settings = SimpleNamespace(chosen_share=0.5, genrm_share=0.25)
    examples, names = sft._examples(CHAT, rows, genrm, settings, seed=7)
    assert rows.reads == 0
    chosen = [rows[i] for i in torch.randperm(40, generator=generator(7, "sft-chosen")).tolist()[:20]]
    judged = torch.randperm(40, generator=generator(7, "sft-genrm")).tolist()[:10]
    assert list(examples) == [
        *((["p", row["prompt"]], ["r", row["chosen"][-1]["content"]]) for row in chosen),
        *((["p", f"q{i}"], ["r", f"a{i}"]) for i in judged),
    ]
    assert list(names) == [
        *(row["prompt_id"] for row in chosen),
        *(f"of train.jsonl, line {i + 1}" for i in judged),
    ]


def test_pairs_of_equal_scores_are_left_out_by_number(rows):
    rows[3]["score_rejected"] = rows[3]["score_chosen"]
    equal = [row["score_chosen"] == row["score_rejected"] for row in rows]
    kept = reward_model._told_apart(rows, drop_equal_scores=True)
    assert list(kept) == [row for row, same in zip(rows, equal, strict=True) if not same]
    assert len(reward_model._told_apart(rows, drop_equal_scores=False)) == 40
    prompt, chosen, rejected = reward_model._pairs(CHAT, kept)[5]
    assert (prompt[1], chosen[1]) == (kept[5]["prompt"], kept[5]["chosen"][-1]["content"])
    assert rejected[1] == kept[5]["rejected"][-1]["content"]
    assert list(reward_model._ids(kept)) == [row["prompt_id"] for row in kept]


def test_a_part_of_an_order_is_that_part_of_the_whole():
    whole = torch.randperm(1000, generator=generator(3, "sft", 2)).tolist()
    assert shuffled(1000, 3, "sft", 2) == whole
    assert shuffled(1000, 3, "sft", 2, 300, 32) == whole[300:332]
    assert shuffled(1000, 3, "sft", 2, 990, 32) == whole[990:]
    drawn = [row for iteration in range(5) for row in prompt_order(10, 4, iteration, 5)]
    assert drawn == [*shuffled(10, 5, "prompts"), *shuffled(10, 5, "prompts", 1)]


def test_what_an_epoch_of_many_rows_holds_does_not_grow_with_their_texts(tmp_path):
    """The index is eight bytes a row, 1.6 MB here; the texts are 48 MB."""
    row = json.dumps({"prompt_id": "x", "prompt": "p", "padding": "y" * 200}).encode() + b"\n"
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(row * 200_000)
    tracemalloc.start()
    prompts = View(JSONLinesFile(path), lambda row: (row["prompt_id"], row["prompt"]))
    for iteration in range(20):
        assert [prompts[i] for i in prompt_order(len(prompts), 16, iteration, 1)] == [("x", "p")] * 16
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 4e6


def test_data_processing_holds_places_of_rows_and_no_texts(tmp_path):
    """3,000 rows of 24 kB are 72 MB; parsed, split and written they never are more than 6 MB at once."""
    path = tmp_path / "rows.jsonl"
    with path.open("w") as file:
        for i, row in enumerate(generate_rows(3000, 0.8, 0.7, 0.25, 1)):
            file.write(json.dumps({**row, "padding": f"{i}" + "y" * 24_000}) + "\n")
    settings = {
        "source": "jsonl", "path": str(path), "repository": None, "revision": None, "split": "train_prefs",
        "sample_size": 60, "eval_fraction": 0.2, "min_rows": 5, "score_range": [0, 10], "max_prompt_tokens": 96,
        "max_response_tokens": 60, "max_line_bytes": 100000, "unseen_sources": [],
    }  # fmt: skip
    tokenizer = toy.chat().tokenizer
    some = [{"line": i, "row": row} for i, row in enumerate(generate_rows(9, 0.8, 0.7, 0.0, 2))]
    data.limit_lengths(some, [], tokenizer, {**settings, "max_response_tokens": 500})  # what is imported is no row
    tracemalloc.start()
    collected = data.collect_preferences(PreferenceSource(), settings, {}, 42)
    kept, rejected = data.validate_rows(collected, settings)
    good, bad, counts = data.limit_lengths(kept, rejected, tokenizer, settings)
    for number, rows in enumerate((*data.split_preferences(good, settings, 42)[:4], collected, bad)):
        JSONLinesDataset(str(tmp_path / f"{number}.jsonl")).save(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 6e6
    assert counts["data/rows_kept"] + counts["data/rows_rejected"] == 3000
    assert counts["data/rows_rejected"] > 300, "many are rejected, and they are held no more than the others"
    assert [item["line"] for item in bad] == sorted(item["line"] for item in bad)


def test_what_was_seen_first_is_kept_and_a_dict_says_the_same():
    chance = random.Random(1)
    seen, last, plain, latest = Seen(), Seen(), {}, {}
    for i in range(2000):
        key = f"k\ud800{chance.randrange(300)}"
        assert seen.get(key) == plain.get(key)
        assert seen.first(key, i) == plain.setdefault(key, i)
        last.last(key, i)
        latest[key] = i
    assert len(seen) == len(plain) == len(last)
    assert all(last.get(key) == value for key, value in latest.items())
    assert seen.get(b"never") is None


def test_lines_are_those_given_empty_ones_and_all():
    given = [b"a", b"", b"\n\xff", b"last"]
    lines = Lines(given)
    assert list(lines) == given and lines[-1] == b"last" and lines[1:3] == given[1:3]
    with pytest.raises(IndexError):
        lines[4]
