"""Five hundred iterations: memory flat, handles and threads constant, files append-only, MLflow hardly noticed."""

import gc
import os
import threading
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from training.test_policy_optimization import run

from gemma_alignment.datasets.checkpoint_store import CheckpointStore
from gemma_alignment.datasets.metric_writer import MetricWriter
from gemma_alignment.datasets.run_log import RunLog
from gemma_alignment.training.checkpoints import train_on
from gemma_alignment.training.policy_optimization import optimize

ITERATIONS, WARM = 500, 100


def resident_mb() -> float:
    """Resident memory of this process."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def handles() -> int:
    """Open files of this process; in a transaction SQLite has its journal and its folder open too."""
    found = []
    for _ in range(10):
        found.append(len(list(Path("/proc/self/fd").iterdir())))
        time.sleep(0.05)
    return min(found)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_five_hundred_iterations_leave_no_trace_but_their_files(
    method: str, tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch, record_property: Any
) -> None:
    changes = {"num_iterations": ITERATIONS, "eval_every": 50, "checkpoint_every": 10}
    training = replace(run(method, shared_changes=changes), scale=(0.0, 1.0))
    client = MlflowClient(f"sqlite:///{empty_store}")
    log = RunLog(tmp_path)
    log.attach(client, client.create_run("0").info.run_id)
    sending, real = [], MetricWriter._flush

    def timed(writer: MetricWriter) -> None:
        begun = time.thread_time()
        real(writer)
        sending.append(time.thread_time() - begun)

    monkeypatch.setattr(MetricWriter, "_flush", timed)
    seen: list[tuple[float, int, int]] = []
    sizes: list[dict[str, int]] = []

    def records(state: Any) -> Any:
        for record in optimize(training, state):
            yield record
            if record.iteration >= WARM and record.iteration % 50 == 0:
                seen.append((resident_mb(), handles(), threading.active_count()))
                sizes.append(dict(log.position()))

    begun = time.process_time()
    train_on(CheckpointStore(tmp_path / "checkpoints", False), log, training.settings, records)
    spent = time.process_time() - begun
    log.close()
    memory, opened, threads = zip(*seen, strict=True)
    share = sum(sending) / spent
    record_property("figures", f"{memory[0]=:.0f} {memory[-1]=:.0f} {share=:.4f} {spent=:.0f}")
    assert memory[-1] < 1.02 * memory[0], memory
    assert max(opened) - min(opened) <= 1, opened  # one more since the writer has the store open
    assert len(set(threads)) == 1, threads
    assert all(after[kind] > before[kind] for before, after in pairwise(sizes) for kind in before)
    assert share < 0.02
