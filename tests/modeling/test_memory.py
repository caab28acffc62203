"""The memory model: its parts by hand, what the real study's configuration promises, and measured peaks."""

import json
import subprocess
import sys
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from gemma_alignment.config import build
from gemma_alignment.modeling.memory import GEMMA_2B, NF4, Holding, Shape, Work, phases
from gemma_alignment.parameters.rates import RateParameters

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
HELD = Holding("nf4", "bfloat16", 16, True, "adam", "sft_merged", "one_base", "adapter")
WORK = Work(1, 24, 6, 384, 128)


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


def test_the_copy_that_decodes_stands_between_rollouts() -> None:
    """5.01 GB in bf16, made at the first rollout."""
    copied = replace(HELD, weights="merged")
    without, found = (phases(GEMMA_2B, hold, WORK, critic=True) for hold in (HELD, copied))
    more = {name: round((found[name] - without[name]) / 1e9, 2) for name in found}
    assert more.pop("load") == 0
    assert set(more.values()) == {5.01}, more


def test_a_base_in_shares_is_divided_but_for_the_piece_that_computes() -> None:
    """5.01 GB in bf16 by four; the table of 1.05 GB is whole while it is read, once as it comes and once laid out."""
    dense = replace(HELD, quantization="none")
    whole, shared = (phases(GEMMA_2B, hold, WORK, critic=True) for hold in (dense, replace(dense, shares=4)))
    less = {name: (whole[name] - shared[name]) / 1e9 for name in whole}
    assert less["load"] == less["optimizer"] == pytest.approx(5.012 * 3 / 4, abs=1e-3)
    for name in ("rollout", "score", "policy backward", "critic backward"):
        assert less[name] == pytest.approx(5.012 * 3 / 4 - 2 * 1.0486, abs=1e-3), name
    wide = Shape(100, 2048, 18, 8, 1, 256, 16_384)
    assert replace(dense, shares=2).gathered(wide) == 2 * 2 * wide.linear_weights / 18
    assert dense.gathered(wide) == 0


def test_pages_are_filled_up() -> None:
    """A page holds 256 positions: 513 take as much as 768, and 512 what they take in one piece."""
    paged = replace(HELD, engine="continuous_batching")

    def rollout(hold, response):
        return phases(GEMMA_2B, hold, replace(WORK, response=response), critic=False)["rollout"]

    each = GEMMA_2B.layers * 2 * 256 * 2 * WORK.decoded
    assert rollout(paged, 128) == rollout(HELD, 128)
    assert rollout(paged, 129) - rollout(HELD, 129) == 255 * each


def test_the_configuration_of_the_real_study_keeps_its_promise(gemma2b) -> None:
    """Of estimates: at most 3.0 GB for GRPO and 4.0 for PPO, 2.5 for GRPO with little memory."""
    for low, method, most in ((False, "grpo", 3.0), (False, "ppo", 4.0), (True, "grpo", 2.5)):
        hold, work = gemma2b.gemma2b(low)
        work = replace(work, group_size=1) if method == "ppo" else work
        assert (hold.quantization, hold.checkpointing, hold.sharing) == ("nf4", True, "one_base")
        assert 2 < peak(hold, work, method == "ppo") <= most


TINY = {
    "shape": [64, 16, 1, 2, 1, 8, 16], "work": vars(Work(2, 4, 2, 6, 3)),
    "hold": vars(replace(HELD, quantization="none", dtype="float32", rank=2)),
}  # fmt: skip


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_an_iteration_is_measured(gemma2b, method) -> None:
    import measure

    row = measure.measured({**TINY, "method": method})
    assert set(row["phases"]) == {"load", *phases(Shape(*TINY["shape"]), HELD, WORK, method == "ppo")}
    assert 0 < row["utilisation"] <= 1
    assert set(row["rates"]) == {one.name for one in fields(RateParameters)} - {"measured_on", "parallel_efficiency"}
    assert all(value > 0 for value in row["rates"].values())


def test_rates_by_hand(gemma2b) -> None:
    """8 responses of 100 + 25 tokens: a critic makes four passes of three, and two roles that learn."""
    import measure

    seconds = {"rollout": 5, "score": 2, "policy backward": 1, "critic backward": 2, "optimizer": 1, "load": 99}
    found = measure.rates({name: {"seconds": value} for name, value in seconds.items()}, Work(1, 8, 1, 100, 25), 2)
    assert found == {
        "forward_tokens_per_second": 4 * 1000 / 2, "train_tokens_per_second": 2 * 1000 / 4,
        "decode_steps_per_second": 25 / 5,
    }  # fmt: skip


def test_what_the_benchmark_prints_is_a_section_of_the_parameters(gemma2b) -> None:
    """The slower of the rows on one base, over conf/base: what several GPUs are worth, one does not tell.

    Separate copies are slower for another reason.
    """
    names = ("forward_tokens_per_second", "train_tokens_per_second", "decode_steps_per_second")
    rows = [
        {"rates": dict(zip(names, values, strict=True)), "device": "A GPU: 16 GB", "hold": {"sharing": sharing}}
        for values, sharing in (((5000, 1500, 20), "one_base"), ((6000, 1000, 19), "one_base"),
                                ((1, 1, 1), "separate_copies"))
    ]  # fmt: skip
    section = yaml.safe_load("\n".join(gemma2b.rates_block(rows)))["rates"]
    usual = yaml.safe_load((Path(__file__).parents[2] / "conf/base/parameters_study.yml").read_text())["rates"]
    assert build(RateParameters, usual | section, "rates") == RateParameters(
        5000.0, 1000.0, 19.0, usual["parallel_efficiency"], "A GPU: 16 GB"
    )


def test_on_cuda_every_row_is_a_process_of_its_own(gemma2b, monkeypatch) -> None:
    """What the allocator reserved for a row it keeps: the next row in the same process would be charged with it."""
    started = []

    def run(command, **how):
        part = json.loads(command[-1])
        started.append([row["method"] for row in part])
        empty = {"allocated_mb": 1.0, "reserved_mb": 1.0, "seconds": 1.0}
        names = phases(GEMMA_2B, HELD, WORK, critic=True)
        lines = [json.dumps({**row, "phases": {name: dict(empty) for name in names}}) for row in part]
        return SimpleNamespace(stdout="\n".join(lines[: len(lines) - lost]))

    monkeypatch.setattr(gemma2b.subprocess, "run", run)
    rows = [gemma2b.asked_for(GEMMA_2B, HELD, WORK, method) for method in ("grpo", "ppo", "grpo")]
    lost = 0
    assert [row["method"] for row in gemma2b.measured(rows, cuda=True)] == ["grpo", "ppo", "grpo"]
    assert started == [["grpo"], ["ppo"], ["grpo"]]
    assert "kept" not in gemma2b.measured(rows, cuda=False)[0] and started[3:] == [["grpo", "ppo", "grpo"]]
    lost = 1
    with pytest.raises(SystemExit, match="1 of 3 rows ended without a result"):
        gemma2b.measured(rows, cuda=False)


@pytest.mark.slow
def test_the_estimates_are_within_a_tenth_of_the_measured_peaks(gemma2b) -> None:
    models = [gemma2b.small(name)[1:] for name in gemma2b.SMALL]
    rows = gemma2b.measured([gemma2b.asked_for(*one, m) for one in models for m in ("grpo", "ppo")], cuda=False)
    assert {(row["hold"]["quantization"], row["hold"]["dtype"]) for row in rows} == {
        ("none", "float32"), ("none", "bfloat16"), ("nf4", "float32"), ("nf4", "bfloat16"),
    }  # fmt: skip
    assert len(rows) == 12
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
