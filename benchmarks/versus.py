"""Ours against TRL on the same model, data and batch: two processes that take turns, lap by lap.

    python benchmarks/versus.py --laps 7                      # or: make bench
    python benchmarks/versus.py --only grpo --laps 15

Each case starts one worker of ours and one of TRL's; while one does a lap the other waits for its line. The ratio of a
round is TRL's time by ours, of the clock and of the processor; the second one also means something on a machine with
other work on it. Results go to ``benchmarks/results/peers.json``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from job import made
from machine import described
from switches import PORTABLE

from gemma_alignment.study.processes import KEEP_MEMORY

HERE = Path(__file__).parent
ROOT = HERE.parent
RESULTS = HERE / "results" / "peers.json"


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    name: str
    size: str
    job: str
    target: float
    version: str = "1.16.0"
    ours: dict[str, Any] = field(default_factory=dict)
    """Parameters that are changed, as after ``--params``."""
    theirs: dict[str, Any] = field(default_factory=dict)
    off: tuple[str, ...] = ()
    """Levers of ours that are switched off."""
    kept: bool = False
    """Whether TRL's process too keeps the memory that it frees, as every process of a study does."""


CASES = (
    Case("grpo", "base", "grpo", 4.0),
    Case("grpo-portable", "base", "grpo", 2.8, off=tuple(PORTABLE)),
    Case("grpo-mid", "mid", "grpo", 5.0),
    Case("grpo-mid-kept", "mid", "grpo", 0.0, kept=True),
    Case("ppo", "base", "ppo", 2.5, "1.12.0"),
    Case("ppo-equal-critic", "base", "ppo", 2.5, "1.12.0", theirs={"critic": "adapter"}),
    Case("sft", "base", "sft", 1.3),
    Case("reward-model", "base", "reward_model", 1.5),
)
UNSHOWN = ("ours", "theirs", "machine", "versions")


class Worker:
    """A process that does laps when asked."""

    def __init__(self, python: str, script: str, asked: dict[str, Any], log: Path, more: Mapping[str, str]) -> None:
        environment = {
            **os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HOME": str(log.parent / "hf"),
            "TOKENIZERS_PARALLELISM": "false", "PYTHONWARNINGS": "ignore", **more,
        }  # fmt: skip
        self._log = log.open("w")
        self._log_path = log
        self._process = subprocess.Popen(
            [python, str(HERE / script), json.dumps(asked)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._log, text=True, env=environment, cwd=ROOT,
        )  # fmt: skip
        self.ready = self._hear()

    def lap(self, command: str = "go") -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + "\n")
        self._process.stdin.flush()
        return self._hear()

    def _hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a worker ended: {self._log_path.read_text()[-2000:]}")
        return dict(json.loads(line))

    def stop(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()
        self._log.close()


def compared(case: Case, folder: Path, pythons: dict[str, str], laps: int, warm_up: int) -> dict[str, Any]:
    """One case: laps in turns, who begins in turns too; then one lap each whose operations are counted."""
    model = str(made(case.size, folder))
    asked = {"job": case.job, "model": model, "set": case.ours, "off": case.off}
    other = {"job": case.job, "model": model, **case.theirs}
    ours = Worker(sys.executable, "ours.py", asked, folder / "ours.log", KEEP_MEMORY)
    theirs = Worker(pythons[case.version], "theirs.py", other, folder / "theirs.log", KEEP_MEMORY if case.kept else {})
    rounds: list[tuple[dict[str, Any], dict[str, Any]]] = []
    try:
        for number in range(warm_up + laps):
            sides = (ours, theirs) if number % 2 == 0 else (theirs, ours)
            first, second = sides[0].lap(), sides[1].lap()
            if number >= warm_up:
                rounds.append((first, second) if sides[0] is ours else (second, first))
        counted = ours.lap("count")["counted"], theirs.lap("count")["counted"]
    finally:
        ours.stop()
        theirs.stop()
    return {
        "case": case.name, "size": case.size, "job": case.job, "trl": case.version, "set": case.ours,
        "theirs_set": case.theirs, "target": case.target, "laps": len(rounds), "warm_up": warm_up,
        "versions": theirs.ready | {"torch_ours": ours.ready["torch"]},
        "ours": [a for a, _ in rounds], "theirs": [b for _, b in rounds], "counted": counted,
        **summary(rounds, counted),
    }  # fmt: skip


def spread(values: list[float]) -> list[float]:
    """Median, smallest, largest."""
    return [statistics.median(values), min(values), max(values)]


def summary(rounds: list[tuple[dict[str, Any], dict[str, Any]]], counted: tuple[float, float]) -> dict[str, Any]:
    """Ratios of paired laps, peaks, response lengths, and how far above the matrix product's limit each side is."""
    found: dict[str, Any] = {
        "ratio_cpu": spread([b["cpu_s"] / a["cpu_s"] for a, b in rounds]),
        "ratio_wall": spread([b["wall_s"] / a["wall_s"] for a, b in rounds]),
        "memory_ratio": rounds[-1][0]["peak_mb"] / rounds[-1][1]["peak_mb"],
    }
    for side, index in (("ours", 0), ("theirs", 1)):
        laps = [pair[index] for pair in rounds]
        lengths = [lap["length"] for lap in laps if lap.get("length")]
        found[f"{side}_cpu_s"] = spread([lap["cpu_s"] for lap in laps])
        found[f"{side}_peak_mb"] = laps[-1]["peak_mb"]
        found[f"{side}_length"] = statistics.mean(lengths) if lengths else None
        found[f"{side}_over_limit"] = spread([lap["cpu_s"] * lap["matrix_rate"] / counted[index] for lap in laps])
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--laps", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--only", default="", help="names of cases, comma-separated")
    parser.add_argument("--folder", default=str(ROOT / "build" / "bench"))
    parser.add_argument("--trl-1.16", dest="new", default=str(ROOT / "build" / "bench" / "trl-1.16" / "bin" / "python"))
    parser.add_argument("--trl-1.12", dest="old", default=str(ROOT / "build" / "bench" / "trl-1.12" / "bin" / "python"))
    asked = parser.parse_args()
    folder = Path(asked.folder)
    folder.mkdir(parents=True, exist_ok=True)
    pythons = {"1.16.0": asked.new, "1.12.0": asked.old}
    names = [name for name in asked.only.split(",") if name] or [case.name for case in CASES]
    kept = json.loads(RESULTS.read_text())["cases"] if RESULTS.exists() else []
    for case in CASES:
        if case.name not in names:
            continue
        row = compared(case, folder, pythons, asked.laps, asked.warm_up) | {"machine": described()}
        kept = [*(old for old in kept if old["case"] != case.name), row]
        order = [one.name for one in CASES]
        kept.sort(key=lambda one: order.index(one["case"]) if one["case"] in order else len(order))
        RESULTS.write_text(json.dumps({"cases": kept}, indent=1) + "\n")
        print(json.dumps({key: value for key, value in row.items() if key not in UNSHOWN}), flush=True)


if __name__ == "__main__":
    main()
