"""What each lever is worth: a GRPO iteration with it switched off against one with everything on, in turns.

    python benchmarks/levers.py --laps 7

Results go to ``benchmarks/results/levers.json``.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from job import made
from machine import described
from switches import FUNCTIONS, SETTINGS
from versus import HERE, ROOT, Worker, spread

from gemma_alignment.study.processes import KEEP_MEMORY

RESULTS = HERE / "results" / "levers.json"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--laps", type=int, default=7)
    parser.add_argument("--warm-up", type=int, default=2)
    parser.add_argument("--size", default="base")
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "bench")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True, exist_ok=True)
    model = str(made(asked.size, asked.folder))
    everything = [*FUNCTIONS], {k: v for setting in SETTINGS.values() for k, v in setting.items()}
    jobs: dict[str, tuple[list[str], dict[str, Any]]] = {
        "": ([], {}), **{name: ([name], {}) for name in FUNCTIONS},
        **{name: ([], setting) for name, setting in SETTINGS.items()}, "all of them": everything,
    }  # fmt: skip
    workers = {
        name: Worker(sys.executable, "ours.py", {"job": "grpo", "model": model, "off": off, "set": changed},
                     asked.folder / f"lever-{number}.log", KEEP_MEMORY)
        for number, (name, (off, changed)) in enumerate(jobs.items())
    }  # fmt: skip
    rounds = []
    for number in range(asked.warm_up + asked.laps):
        laps = {name: worker.lap() for name, worker in workers.items()}
        if number >= asked.warm_up:
            rounds.append(laps)
    counted = {name: worker.lap("count")["counted"] for name, worker in workers.items()}
    for worker in workers.values():
        worker.stop()
    rows = [
        {
            "lever": name, "slower": spread([lap[name]["cpu_s"] / lap[""]["cpu_s"] for lap in rounds]),
            "cpu_s": statistics.median(lap[name]["cpu_s"] for lap in rounds), "gflop": counted[name] / 1e9,
            "peak_mb": rounds[-1][name]["peak_mb"],
        }
        for name in jobs
    ]  # fmt: skip
    found = {"size": asked.size, "laps": asked.laps, "rows": rows, "machine": described()}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
