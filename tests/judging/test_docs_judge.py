"""``docs/judge.md`` names settings, files and a snapshot that exist."""

import re
from pathlib import Path

import yaml

from gemma_alignment.judging.canaries import EXPECTED
from gemma_alignment.judging.connection import JudgeConnection
from gemma_alignment.parameters.judge import JudgeKind

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "judge.md").read_text("utf-8")
JUDGE = yaml.safe_load((ROOT / "conf/base/parameters_evaluation.yml").read_text("utf-8"))["judge"]


def test_every_setting_that_is_named_exists():
    named = set(re.findall(r"\bjudge\.([a-z_]+(?:\.[a-z_]+)?)\b", TEXT)) - {"md"}
    assert len(named) > 12
    for name in named:
        section, _, field = name.partition(".")
        assert section in JUDGE, name
        assert not field or field in JUDGE[section], name


def test_every_kind_and_the_default_snapshot_are_named():
    kinds = set(re.findall(r"^\| `(\w+)` \|", TEXT, re.M))
    assert set(JudgeKind.__args__) <= kinds
    assert JUDGE["model"] in TEXT


def test_the_files_are_those_that_are_written(tmp_path):
    cache = JudgeConnection(tmp_path / "judge_cache.jsonl").cache().path
    for path in (cache, cache.with_suffix(".spend.jsonl"), cache.with_suffix(".batches.jsonl")):
        assert f"`{path.name}`" in TEXT
    assert f"`{cache.with_suffix('.claims').name}/`" in TEXT
    catalog = (ROOT / "conf/base/catalog_evaluation.yml").read_text("utf-8")
    assert "/judge_cache.jsonl" in catalog


def test_every_sort_of_question_is_described():
    words = {
        "same": "against itself",
        "empty": "empty answer",
        "imitation": "imitates a verdict",
        "flattery": "flattery",
        "injection": "[[A]]",
        "known": "the chosen answer must beat",
    }
    assert set(words) == set(EXPECTED)
    assert all(found in TEXT for found in words.values())


def test_whoever_names_the_document_finds_it():
    naming = [path for path in (ROOT / "conf").rglob("*.yml") if "docs/judge.md" in path.read_text("utf-8")]
    assert naming
