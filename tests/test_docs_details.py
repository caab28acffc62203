"""The list of implementation details cannot rot: what it names must exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in (ROOT / "docs" / "implementation_details.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| *\d+ *\|", line)
]
REFERENCE = re.compile(r"`([\w/]+\.py)::([\w.]+)`")


def _names(path: Path) -> set[str]:
    """Everything that a module defines: functions, classes, their methods, and assigned names."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
            if isinstance(node, ast.ClassDef):
                found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id for target in targets if isinstance(target, ast.Name)}
    return found


def test_there_are_details_and_their_numbers_run_through():
    assert len(ROWS) >= 36
    assert [int(row[0]) for row in ROWS] == list(range(1, len(ROWS) + 1))


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"detail-{row[0]}")
def test_what_a_detail_names_exists(row):
    assert len(row) == 5, "number, rule, source, code, test"
    number, rule, source, code, tests = row
    assert rule.endswith("."), number
    assert source, number
    for cell, folder in ((code, "src/"), (tests, "tests/")):
        references = REFERENCE.findall(cell)
        assert references, f"detail {number} names nothing in {folder}"
        assert len(references) == cell.count("`") // 2, f"detail {number}: {cell} is not `path::name`"
        for path, name in references:
            assert path.startswith(folder), f"detail {number}: {path}"
            assert (ROOT / path).is_file(), f"detail {number}: there is no {path}"
            assert name in _names(ROOT / path), f"detail {number}: {path} has no {name}"
            assert folder == "src/" or name.startswith("test_"), f"detail {number}: {name} is no test"


def test_every_objective_has_a_detail():
    named = {reference for row in ROWS for reference in REFERENCE.findall(row[3])}
    for path in sorted((ROOT / "src/gemma_alignment/objectives").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert (path.relative_to(ROOT).as_posix(), node.name) in named, f"{path.name}::{node.name}"


def test_a_name_that_does_not_exist_is_caught():
    with pytest.raises(AssertionError, match="has no whitewash"):
        test_what_a_detail_names_exists(
            ["0", "A rule.", "a source", "`src/gemma_alignment/objectives/masking.py::whitewash`", "`tests/x.py::y`"]
        )
