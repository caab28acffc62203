"""What a study shows while it runs: a line on the preparation that says how far it is, and one on each arm."""

import io
import json
import os
import time
from types import SimpleNamespace

import pytest
from rich.console import Console

from gemma_alignment.fingerprints import Record
from gemma_alignment.study.board import Board
from gemma_alignment.study.plan import Run
from gemma_alignment.study.processes import Child, Here

PREPARATION = ("data_processing", "sft", "reward_model")


def child(tmp_path, stages, **params):
    """A process that runs: this one."""
    alive = Here(SimpleNamespace(pid=os.getpid(), poll=lambda: None))
    return Child(Run(stages, params), tmp_path / "log", process=alive, started=time.monotonic() - 65)


def write(tmp_path, folder, status, history=(), timing=()):
    directory = tmp_path / "07_model_output" / folder
    directory.mkdir(parents=True)
    Record(folder, 42, "", {}, {}, status=status).write(directory)
    now = time.time_ns() // 1_000_000
    clocked = [{**row, "timestamp": now + row["iteration"]} for row in timing]
    for name, rows in (("history", history), ("timing", clocked)):
        (directory / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(params=[False, True], ids=["file", "terminal"])
def shown(request, tmp_path):
    def show(*children):
        said = io.StringIO()
        with Board(children, tmp_path, 80, Console(file=said, width=200, force_terminal=request.param)):
            pass
        return said.getvalue()

    return show


def test_the_preparation_shows_its_stages_and_the_steps_of_the_one_that_runs(tmp_path, shown):
    write(tmp_path, "data_processing", "finished", [{"iteration": 9}], [{"iteration": 9, "planned": 9}])
    timing = [{"iteration": i, "planned": 300} for i in (100, 200)]
    write(tmp_path, "sft", "running", [{"iteration": 200, "sft/loss": 1.25}], timing)
    text = shown(child(tmp_path, PREPARATION))
    assert "data_processing finished  sft running  iteration 200/300  loss 1.250" in text
    assert "0:00" in text  # what is left, at a thousandth of a second a step
    assert "1:05" in text


def test_an_arm_shows_reward_kl_speed_and_what_is_left(tmp_path, shown):
    history = [{"iteration": 20, "reward/score_mean": 0.5, "policy/kl_to_reference": 0.25}]
    timing = [{"iteration": i, "rollout/tokens_per_second": 900.4} for i in (18, 19, 20)]
    write(tmp_path, "grpo/seed=7", "running", history, timing)
    text = shown(child(tmp_path, ("grpo",), seed=7))
    assert "grpo-seed7" in text
    assert "iteration 20/80  reward 0.500  KL 0.250  900 tokens/s" in text


def test_before_the_first_line_there_is_no_progress(tmp_path, shown):
    write(tmp_path, "data_processing", "running")
    text = shown(child(tmp_path, PREPARATION))
    assert "data_processing running" in text
    assert "iteration" not in text
