"""Agreement on verdicts that real judges and people gave, to the last digit."""

import json
import os
from itertools import combinations
from pathlib import Path

import pytest

from gemma_alignment.statistics.agreement import kappa
from gemma_alignment.statistics.tests import sign_test

ROOT = Path(__file__).parents[2]
VERDICTS = Path(os.environ.get("GEMMA_ALIGNMENT_SHARED", ROOT.parent / "shared")) / "data" / "judge_swap"
pytestmark = pytest.mark.skipif(not VERDICTS.exists(), reason=f"no stored verdicts at {VERDICTS}")


def rows(name):
    with (VERDICTS / name).open(encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def expected(name):
    return json.loads((VERDICTS / name).read_text(encoding="utf-8"))


def test_judges_against_themselves_with_the_slots_swapped():
    everything = rows("LLMBar/verdicts_vanilla.jsonl")
    blocks = expected("expected_llmbar.json")["files"]
    assert len(blocks) == 10
    for block in blocks:
        mine = [r for r in everything if (r["subset"], r["judge"]) == (block["subset"], block["judge"])]
        result = kappa([r["ab_winner"] for r in mine], [r["ba_winner"] for r in mine])
        assert result.n == block["n"]
        assert result.kappa == pytest.approx(block["kappa_AB_BA"], abs=1e-10)
        assert result.agreement == pytest.approx(block["consistent"] / block["n"], abs=1e-12)
        flips = sign_test(block["flips_first_slot_twice"], block["flips_second_slot_twice"])
        assert flips.p == pytest.approx(block["flips_binom_p"], abs=1e-8)


def test_three_people():
    everything = rows("PandaLM/verdicts.jsonl")
    for pair, value in expected("expected_pandalm.json")["annotator_kappa"].items():
        assert pair in {f"{a}-{b}" for a, b in combinations((1, 2, 3), 2)}
        first, second = ([r[f"annotator{k}"] for r in everything] for k in pair.split("-"))
        assert kappa(first, second).kappa == pytest.approx(value, abs=1e-10)
