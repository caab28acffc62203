"""The list of implementation details cannot rot: what it names must exist."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in (ROOT / "docs" / "implementation_details.md").read_text(encoding="utf-8").splitlines()
    if re.match(r"\| *\d+ *\|", line)
]
CODE = re.compile(r"`(src/[\w/]+\.py)::([\w.]+)`: `([^`]+)`")
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


@cache
def _sources(path: Path) -> dict[str, str]:
    """Everything that a module defines, with its source: functions, classes, their methods, and assigned names."""
    text = path.read_text(encoding="utf-8")
    found: dict[str, str] = {}
    for node in ast.parse(text).body:
        source = ast.get_source_segment(text, node) or ""
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found[node.name] = source
            parts = node.body if isinstance(node, ast.ClassDef) else []
            methods = [part for part in parts if isinstance(part, ast.FunctionDef)]
            found |= {f"{node.name}.{one.name}": ast.get_source_segment(text, one) or "" for one in methods}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: source for target in targets if isinstance(target, ast.Name)}
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
    lines, pins = CODE.findall(code), TEST.findall(tests)
    assert lines and pins, f"detail {number} names no code or no test"
    assert 4 * len(lines) == code.count("`"), f"detail {number}: {code} is not `path::name`: `line`"
    assert 2 * len(pins) == tests.count("`"), f"detail {number}: {tests} is not `path::name`"
    for path, name in [*(one[:2] for one in lines), *pins]:
        assert (ROOT / path).is_file(), f"detail {number}: there is no {path}"
        assert name in _sources(ROOT / path), f"detail {number}: {path} has no {name}"
    for path, name, line in lines:
        assert line in _sources(ROOT / path)[name], f"detail {number}: {name} has no line `{line}`"


def test_every_objective_has_a_detail():
    named = {reference[:2] for row in ROWS for reference in CODE.findall(row[3])}
    for path in sorted((ROOT / "src/gemma_alignment/objectives").glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                assert (path.relative_to(ROOT).as_posix(), node.name) in named, f"{path.name}::{node.name}"


def test_a_name_that_does_not_exist_is_caught():
    good = ["0", "A rule.", "a source", "`src/gemma_alignment/objectives/kl.py::k3`: `torch.expm1(-x) + x`",
            "`tests/objectives/test_kl.py::test_nothing_is_clamped`"]  # fmt: skip
    test_what_a_detail_names_exists(good)
    for place, wrong, message in [
        (3, good[3].replace("::k3", "::k4"), "has no k4"),
        (3, good[3].replace("expm1", "exp"), "k3 has no line"),
        (3, good[3].replace("kl.py", "lk.py"), "there is no src"),
        (3, good[3].split(":")[0], "names no code"),
        (4, good[4].replace("nothing", "everything"), "has no test_everything_is_clamped"),
        (1, "No full stop", "0"),
    ]:
        with pytest.raises(AssertionError, match=message):
            test_what_a_detail_names_exists([*good[:place], wrong, *good[place + 1 :]])
