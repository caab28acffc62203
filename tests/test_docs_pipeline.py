"""docs/pipeline.md shows the defaults that conf/base has, and every one of them."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "pipeline.md").read_text(encoding="utf-8")


@pytest.fixture
def parameters(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import parameters

    return parameters


def test_every_parameter_stands_there_with_its_default(parameters):
    (shown,) = parameters.BLOCK.findall(TEXT)
    assert shown == parameters.tables(), "run docs/parameters.py"
    assert "| `grpo.group_size` | `6` |" in shown
    assert "| `kl_control.schedule` | `[0.05, 0.02, 0.01]` |" in shown


def test_a_changed_default_is_seen(parameters, tmp_path, monkeypatch):
    import shutil

    shutil.copytree(ROOT / "conf", tmp_path / "conf", ignore=shutil.ignore_patterns("local"))
    file = tmp_path / "conf" / "base" / "parameters_grpo.yml"
    file.write_text(file.read_text().replace("group_size: 6", "group_size: 8"))
    before = parameters.tables()
    monkeypatch.setattr(parameters, "ROOT", tmp_path)
    monkeypatch.setattr(parameters, "BASE", tmp_path / "conf" / "base")
    assert parameters.tables() == before.replace("| `grpo.group_size` | `6` |", "| `grpo.group_size` | `8` |")


def test_measured_trade_offs_stand_beside_the_expected_ones():
    rows = re.findall(r"^\| (Stability|Memory|Complexity|Sensitivity|Final quality) \|(.*)\|$", TEXT, re.MULTILINE)
    assert len(rows) == 5
    assert all(len(cells.split("|")) == 4 for _, cells in rows)
