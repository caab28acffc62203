"""What ``make mutate`` says and how it ends."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from mutation_score import COUNTS, score

SCRIPT = Path(__file__).with_name("mutation_score.py")
NONE = dict.fromkeys(
    ["killed", "survived", "total", "no_tests", "skipped", "suspicious", "timeout", "check_was_interrupted_by_user",
     "segfault"], 0,
)  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "sentence", "enough"),
    [
        ({"killed": 89, "timeout": 1, "survived": 10}, "90 of 100 mutants caught (90.0%, 90% are asked for)", True),
        ({"killed": 89, "survived": 11}, "89 of 100 mutants caught (89.0%, 90% are asked for)", False),
        ({"killed": 899, "no_tests": 101}, "899 of 1,000 mutants caught (89.9%, 90% are asked for)", False),
        ({}, "no mutant was tried", False),
    ],
)
def test_below_nine_tenths_is_not_enough(counts, sentence, enough):
    found = NONE | counts
    assert score(found | {"total": sum(counts.values())}) == (sentence, enough)
    if counts:
        assert score(found | {"total": sum(counts.values()) + 1_500}) == (f"{sentence}; 1,500 not tried", enough)


@pytest.mark.parametrize(("survived", "code"), [(1, 0), (2, 1)])
def test_the_command_fails_below_it(tmp_path, survived, code):
    path = tmp_path / COUNTS
    path.parent.mkdir()
    path.write_text(json.dumps(NONE | {"killed": 9, "survived": survived, "total": 9 + survived}), "utf-8")
    done = subprocess.run([sys.executable, SCRIPT], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stdout.startswith(f"9 of {9 + survived} mutants caught")
