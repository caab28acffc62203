"""A whole study: starts of a process, cold and from the warm server; wall time against workers, and processes of a run.

    python benchmarks/study.py start --rounds 5         # to the first record of a small arm, in turns
    python benchmarks/study.py workers --most 2         # six short arms, 1 or 2 at a time, in turns
    python benchmarks/study.py processes --rounds 3     # a short arm by one process and by two, in turns

Results go to ``benchmarks/results/study.json``. The data is made in ``build/bench/study`` and kept.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from machine import described

from gemma_alignment.pipelines.several import PROCESSES
from gemma_alignment.study.processes import anew, surroundings
from gemma_alignment.study.warm import Warm

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results" / "study.json"
FOLDER = ROOT / "build" / "bench" / "study"
PREPARATION = "data_processing,sft,reward_model"
TICKS = os.sysconf("SC_CLK_TCK")


def run(words: Sequence[str], more: Mapping[str, str] | None = None) -> None:
    """A command of Kedro on this project; its output where it fails."""
    done = subprocess.run(
        [sys.executable, "-m", "kedro", *words], cwd=ROOT, env=variables() | dict(more or {}), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def variables() -> dict[str, str]:
    """Those of a study's process, with an MLflow store of the benchmark's own."""
    return {**surroundings(), "MLFLOW_TRACKING_URI": f"sqlite:///{FOLDER / 'mlflow.db'}"}


def prepared(env: str) -> Path:
    """The data of an environment with everything that an arm needs."""
    root = FOLDER / env
    if not (root / "06_models" / "rm_model_bt" / "head.safetensors").exists():
        root.mkdir(parents=True, exist_ok=True)
        run(["run", f"--pipelines={PREPARATION}", f"--env={env}", "--params", f"data_root={root}"])
    return root


def spent(pid: int) -> float:
    """Processor seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def started(how: str, launch: Any, root: Path, seed: int) -> dict[str, float]:
    """Seconds, of the clock and of the processor, from a start to the first record of an arm."""
    line = root / "07_model_output" / f"grpo@{how}" / f"seed={seed}" / "history.jsonl"
    line.unlink(missing_ok=True)
    words = ["run", "--pipelines=grpo", "--env=test", "--params",
             f"data_root={root},seed={seed},variant={how},overwrite=true"]  # fmt: skip
    begun = time.perf_counter()
    with (root / f"{how}.log").open("wb") as output:
        process = launch(words, ROOT, variables(), output)
    while not (line.exists() and line.stat().st_size):
        if process.poll() is not None:
            raise RuntimeError((root / f"{how}.log").read_text()[-2000:])
        time.sleep(0.01)
    found = {"wall_s": time.perf_counter() - begun, "cpu_s": spent(process.pid)}
    if process.wait():
        raise RuntimeError((root / f"{how}.log").read_text()[-2000:])
    return found


def start(rounds: int) -> dict[str, Any]:
    """Cold and warm starts in turns; the first of each, which warms the disk's cache, is left out."""
    root = prepared("test")
    rows = []
    with Warm(ROOT, variables()) as server:
        for number in range(rounds + 1):
            rows.append({how: started(how, launch, root, number)
                         for how, launch in (("cold", anew), ("warm", server.start))})  # fmt: skip
    kept = rows[1:]
    return {
        "rounds": kept,
        **{f"{how}_{key}": statistics.median(row[how][key] for row in kept)
           for how in ("cold", "warm") for key in ("wall_s", "cpu_s")},
    }  # fmt: skip


def against_workers(most: int, rounds: int, iterations: int) -> dict[str, Any]:
    """Wall time of six arms, evaluation and report on prepared artefacts, for 1 to ``most`` workers in turns.

    A study before them, which is left out, pays for what all share: verdicts that are kept, files in the disk's cache.
    """
    root = prepared("base")
    changed = f"data_root={root},policy_optimization.num_iterations={iterations},overwrite=true"

    def study(count: int) -> float:
        begun = time.perf_counter()
        run(["study", f"--workers={count}", "--params", changed])
        return time.perf_counter() - begun

    study(most)
    counts = range(1, most + 1)
    rows = [{count: study(count) for count in (counts if turn % 2 else reversed(counts))} for turn in range(rounds)]
    ratios = {count: [row[1] / row[count] for row in rows] for count in counts[1:]}
    return {"rounds": rows, "iterations": iterations,
            "faster": {n: [statistics.median(r), min(r), max(r)] for n, r in ratios.items()}}  # fmt: skip


def iteration(count: int, iterations: int) -> float:
    """Median seconds of an iteration of an arm that so many processes train, evaluations left out."""
    root, variant = prepared("base"), f"processes{count}"
    shared = f"policy_optimization.num_iterations={iterations},policy_optimization.eval_every={iterations}"
    run(
        ["run", "--pipelines=grpo", "--params", f"data_root={root},seed=42,variant={variant},overwrite=true,{shared}"],
        {PROCESSES: str(count)},
    )
    lines = (root / "07_model_output" / f"grpo@{variant}" / "seed=42" / "timing.jsonl").read_text().splitlines()
    seconds = [row["budget/seconds"] for row in map(json.loads, lines) if "budget/seconds" in row][:-1]
    return statistics.median(b - a for a, b in pairwise(seconds))


def against_processes(rounds: int, iterations: int) -> dict[str, Any]:
    """Seconds of an iteration by one process and by two, and the share of two cores that is made use of."""
    rows = [{count: iteration(count, iterations) for count in (1, 2)} for _ in range(rounds)]
    efficiency = [row[1] / row[2] / 2 for row in rows]
    return {"rounds": rows, "iterations": iterations, "efficiency": statistics.median(efficiency),
            "least": min(efficiency), "largest": max(efficiency)}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("start", "workers", "processes"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--most", type=int, default=2)
    parser.add_argument("--iterations", type=int, default=20)
    asked = parser.parse_args()
    FOLDER.mkdir(parents=True, exist_ok=True)
    measure = {
        "start": lambda: start(asked.rounds),
        "workers": lambda: against_workers(asked.most, asked.rounds, asked.iterations),
        "processes": lambda: against_processes(asked.rounds, asked.iterations),
    }
    found = measure[asked.part]()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**kept, asked.part: found | {"machine": described()}}, indent=1) + "\n")
    print(json.dumps({key: value for key, value in found.items() if key != "rounds"}))


if __name__ == "__main__":
    main()
