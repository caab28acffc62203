"""How a GRPO iteration grows: seconds and peak memory against each size, fitted by a straight line.

    python benchmarks/scaling.py                     # every size
    python benchmarks/scaling.py --only rows         # responses, response, prompt, model, rows

Each point is a process of its own, forked when every library is loaded. No response ends by itself, so that the tokens
of an iteration are known. Seconds are of the processor, the median of the laps after the first. Results go to
``benchmarks/results/scaling.json``.
"""

import argparse
import hashlib
import json
import math
import os
import random
import statistics
import tempfile
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from laps import resident
from machine import described
from ours import arm, parameters
from scipy import stats

from gemma_alignment.config import build
from gemma_alignment.datasets.json_lines import JSONLinesFile
from gemma_alignment.modeling.roles import SharedBase
from gemma_alignment.modeling.tiny import tiny_gemma
from gemma_alignment.parameters.training import ModelingParameters

RESULTS = Path(__file__).parent / "results" / "scaling.json"
VOCABULARY = 768
USUAL = {"responses": 96, "response": 48, "prompt": 24, "model": 128, "rows": 1000}
POINTS: dict[str, Sequence[int]] = {
    "responses": (24, 48, 96, 192), "response": (12, 24, 48, 96), "prompt": (8, 16, 32, 64, 128),
    "model": (64, 96, 128, 192, 256), "rows": (1000, 10_000, 100_000, 1_000_000),
}  # fmt: skip
"""Sizes of each axis: responses an iteration, their tokens, tokens of a prompt, hidden size, rows to train on."""


class Drawn:
    """Text for a model without words: a prompt is as many ids as asked for, drawn by its text; nothing ends one."""

    stop_ids = (VOCABULARY,)
    pad_id = 0

    def __init__(self, length: int) -> None:
        self._length = length

    def encode_prompt(self, prompt: str) -> list[int]:
        chance = random.Random(prompt)
        return [chance.randrange(110, VOCABULARY) for _ in range(self._length)]

    def encode_response(self, response: str) -> list[int]:
        return self.encode_prompt(response)

    def decode_response(self, tokens: Sequence[int]) -> str:
        return str(len(tokens))


def rows_file(count: int, folder: Path) -> Path:
    """Prompts of an UltraFeedback row's size, as JSON lines."""
    path = folder / f"{count}.jsonl"
    with path.open("w") as file:
        for i in range(count):
            name = hashlib.sha256(str(i).encode()).hexdigest()
            row = {"prompt": f"prompt {i}", "prompt_ids": [1, 2], "chosen": [3], "prompt_id": name}
            file.write(json.dumps(row) + "\n")
    return path


def measured(axis: str, size: int, path: Path, laps: int) -> dict[str, float]:
    """A lap's seconds and the peak of memory at one point, in this process."""
    of = {**USUAL, axis: size}
    torch.set_num_threads(1)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    tree = parameters({
        "policy_optimization.responses_per_iteration": of["responses"], "rollout.max_new_tokens": of["response"],
        "rollout.batch_size": of["responses"], "policy_optimization.minibatch_size": of["responses"] // 2,
        "policy_optimization.microbatch_size": min(48, of["responses"] // 2),
    })  # fmt: skip
    shape = SimpleNamespace(hidden_size=of["model"], layers=2, heads=4, intermediate_size=3 * of["model"],
                            max_positions=512)  # fmt: skip
    base = tiny_gemma(shape, VOCABULARY, 0).eval().requires_grad_(False)
    weights = sum(p.numel() for p in base.parameters())
    lora = build(ModelingParameters, tree["modeling"], "modeling").lora
    records = arm("grpo", SharedBase(base, lora, 0), Drawn(of["prompt"]), JSONLinesFile(path), tree)
    next(records)
    seconds = []
    for _ in range(laps):
        started = os.times()
        next(records)
        ended = os.times()
        seconds.append(ended.user + ended.system - started.user - started.system)
    peak = resident("VmHWM")
    return {
        "size": size, "parameters": weights, "cpu_s": statistics.median(seconds),
        "laps": seconds, "tokens": of["responses"] * of["response"], "peak_mb": peak - before, "resident_mb": peak,
    }  # fmt: skip


def apart(work: Callable[[], dict[str, float]]) -> dict[str, float]:
    """The result of work that a fork of this process does."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        code = 1
        try:
            os.write(writing, json.dumps(work()).encode())
            code = 0
        except Exception:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as said:
        text = said.read()
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("a point could not be measured: its error is above")
    return dict(json.loads(text))


def line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """y = intercept + slope x, R², and the 95% interval of the slope."""
    fit = stats.linregress(x, y)
    half = float(stats.t.ppf(0.975, len(x) - 2) * fit.stderr)
    return {
        "intercept": float(fit.intercept), "slope": float(fit.slope), "r2": float(fit.rvalue**2),
        "slope_low": float(fit.slope) - half, "slope_high": float(fit.slope) + half,
    }  # fmt: skip


def fitted(axis: str, points: list[dict[str, Any]]) -> dict[str, Any]:
    """Lines through the points: of rows against decades, every lap a point, and relative to the mean."""
    if axis == "rows":
        x = [math.log10(p["size"]) for p in points for _ in p["laps"]]
        y = np.array([lap for p in points for lap in p["laps"]])
        return {"x": "decades of rows", "seconds": line(x, (y / y.mean()).tolist()),
                "memory": line([math.log10(p["size"]) for p in points],
                               [p["resident_mb"] / points[0]["resident_mb"] for p in points])}  # fmt: skip
    x = [p["parameters"] if axis == "model" else p["size"] for p in points]
    return {"x": "parameters" if axis == "model" else axis,
            "seconds": line(x, [p["cpu_s"] for p in points]),
            "memory": line(x, [p["peak_mb"] for p in points])}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--laps", type=int, default=3)
    parser.add_argument("--only", default=",".join(POINTS))
    asked = parser.parse_args()
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for axis in asked.only.split(","):
            laps = 5 if axis == "rows" else asked.laps
            points = []
            for size in POINTS[axis]:
                path = rows_file(size if axis == "rows" else USUAL["rows"], folder)
                points.append(apart(partial(measured, axis, size, path, laps)))
                path.unlink()
            kept[axis] = {"points": points, **fitted(axis, points), "machine": described()}
            RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
            print(axis, json.dumps({key: kept[axis][key] for key in ("x", "seconds", "memory")}), flush=True)
    both = [p for axis in ("responses", "response") if axis in kept for p in kept[axis]["points"]]
    if both:
        kept["tokens"] = line([p["tokens"] for p in both], [p["cpu_s"] for p in both])
        RESULTS.write_text(json.dumps(kept, indent=1) + "\n")
        print("tokens", json.dumps(kept["tokens"]))


if __name__ == "__main__":
    main()
