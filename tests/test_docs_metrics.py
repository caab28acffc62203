"""The glossary of metrics and what the code logs are the same set, in both directions."""

import ast
import re
from pathlib import Path

from training.test_policy_optimization import run

from gemma_alignment.training.methods import METHODS
from gemma_alignment.training.policy_optimization import optimize

ROOT = Path(__file__).parents[1]
AREAS = "data|reward|policy|value|rollout|eval|budget|memory|pretraining|sft|reward_model|evaluation"
KEY = re.compile(rf"({AREAS})/[a-z_0-9]+")
DOCUMENTED = re.findall(rf"^\| `((?:{AREAS})/[a-z_0-9]+)` \|", (ROOT / "docs/metrics.md").read_text("utf-8"), re.M)


def written_in_the_code() -> set[str]:
    """Every string of the package that is a key."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and KEY.fullmatch(node.value):
                found.add(node.value)
    return found


def logged_by_the_arms() -> set[str]:
    """Every key of every method's records, those put together from parts included."""
    records = [record for name in METHODS for record in optimize(run(name))]
    return {key for record in records for key in (*record.metrics, *record.timing)}


def test_every_key_that_is_logged_is_explained_and_no_other() -> None:
    arms = logged_by_the_arms()
    assert {"policy/ratio_mean", "memory/peak_mb", "value/loss"} <= arms
    assert set(DOCUMENTED) == written_in_the_code() | arms
    assert len(DOCUMENTED) == len(set(DOCUMENTED))


def test_every_line_has_a_formula_a_unit_and_a_source() -> None:
    lines = [line for line in (ROOT / "docs/metrics.md").read_text("utf-8").splitlines() if line.startswith("| `")]
    assert len(lines) == len(DOCUMENTED)
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == 4 and all(cells), line
