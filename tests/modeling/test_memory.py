"""The memory model: its parts by hand, what the real study's configuration promises, and measured peaks."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from gemma_alignment.modeling.memory import GEMMA_2B, NF4, Holding, Work, phases

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HELD = Holding("nf4", "bfloat16", 16, True, "adam", "sft_merged", "one_base", "adapter")
WORK = Work(1, 18, 6, 384, 128)


@pytest.fixture
def gemma2b(monkeypatch):
    """The benchmark, as a module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    import gemma2b

    return gemma2b


def peak(hold, work, critic):
    return max(phases(GEMMA_2B, hold, work, critic).values()) / 1e9


def test_the_base_by_hand() -> None:
    """1,981.8 M weights in NF4 with double quantisation, a tied table of 524.3 M in bf16."""
    assert pytest.approx(0.5159, abs=1e-4) == NF4
    assert HELD.base(GEMMA_2B) / 1e9 == pytest.approx(1.0224 + 1.0486, abs=1e-3)
    assert replace(HELD, embedding="int8").base(GEMMA_2B) / 1e9 == pytest.approx(1.0224 + 0.5243, abs=1e-3)
    assert replace(HELD, quantization="none").base(GEMMA_2B) / 1e9 == pytest.approx(5.012, abs=1e-3)
    loaded = phases(GEMMA_2B, HELD, WORK, critic=False)["load"]
    assert (loaded - HELD.base(GEMMA_2B)) / 1e9 == pytest.approx(2 * 0.0784, abs=1e-3)


def test_what_each_saving_saves() -> None:
    grpo, copies = peak(HELD, WORK, False), peak(replace(HELD, sharing="separate_copies"), WORK, False)
    assert copies - grpo == pytest.approx(2 * HELD.base(GEMMA_2B) / 1e9, abs=1e-6)
    before, after = (phases(GEMMA_2B, replace(HELD, optimizer=o), WORK, True) for o in ("adam", "paged_adam_8bit"))
    assert (before["optimizer"] - after["optimizer"]) / 1e9 == pytest.approx(2 * 0.0196 * (8 - 2.03), abs=1e-3)
    assert peak(replace(HELD, checkpointing=False), WORK, False) > grpo + 1
    assert peak(HELD, replace(WORK, rows=2), False) > grpo
    chained = phases(GEMMA_2B, replace(HELD, rl_base="sft_adapter"), WORK, False)["load"]
    assert (chained - phases(GEMMA_2B, HELD, WORK, False)["load"]) / 1e9 == pytest.approx(0.0784, abs=1e-3)


def test_the_configuration_of_the_real_study_keeps_its_promise(gemma2b) -> None:
    """Of estimates: at most 3.0 GB for GRPO and 4.0 for PPO, 2.5 for GRPO with little memory."""
    for low, method, most in ((False, "grpo", 3.0), (False, "ppo", 4.0), (True, "grpo", 2.5)):
        hold, work = gemma2b.gemma2b(low)
        work = replace(work, group_size=1) if method == "ppo" else work
        assert (hold.quantization, hold.checkpointing, hold.sharing) == ("nf4", True, "one_base")
        assert 2 < peak(hold, work, method == "ppo") <= most


@pytest.mark.slow
def test_the_estimates_are_within_a_tenth_of_the_measured_peaks(gemma2b) -> None:
    hold = Holding("none", "float32", 16, True, "adam", "sft_merged", "one_base", "adapter")
    sizes, methods = gemma2b.SMALL.values(), ("grpo", "ppo")
    rows = gemma2b.measured([gemma2b.asked_for(shape, hold, work, m) for shape, work in sizes for m in methods])
    assert len(rows) == 6
    for row in rows:
        found = gemma2b._peak(row)
        assert found["estimated_mb"] == pytest.approx(found["allocated_mb"], rel=0.1), json.dumps(row, indent=1)


@pytest.mark.slow
def test_a_step_grows_with_the_length_in_the_naive_way_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import json, vocabulary; print(json.dumps(vocabulary.growth()))"], cwd=BENCHMARKS,
        text=True, check=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["chunks"]["growth"] < 0.1
    assert found["naive"]["growth"] >= 0.8
