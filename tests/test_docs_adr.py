"""The decision records: each is in the index, says what it costs, and names tests that are there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "adr"
RECORDS = sorted(FOLDER.glob("[0-9]*.md"))


def test_the_index_names_each_once_in_order():
    index = re.findall(r"^\| \[\d+\]\(([^)]+)\) \|", (FOLDER / "README.md").read_text(encoding="utf-8"), re.M)
    assert index == [path.name for path in RECORDS]
    assert len(RECORDS) >= 5


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_says_why_what_it_costs_and_where_it_is_held(path):
    text = path.read_text(encoding="utf-8")
    assert text.startswith(f"# {int(path.name[:4])}. ")
    assert re.search(r"^\d{4}-\d\d-\d\d\b.*\b(Stands|Replaced)", text, re.M)
    for part in ("**Why.**", "**What it costs.**", "**Held by**"):
        assert part in text, part
    named = re.findall(r"`((?:tests|src|docs)/[\w/.]+)`", text)
    named += [f"src/gemma_alignment/{one}" for one in re.findall(r"`((?:training|modeling|datasets)/[\w/.]+)`", text)]
    links = [(path.parent / one).resolve() for one in re.findall(r"\]\(([^)#]+)\)", text)]
    assert any(one.startswith("tests/") for one in named)
    assert [one for one in named if not (ROOT / one).exists()] == []
    assert [one for one in links if not one.exists()] == []
