"""The worker's side of an alternating benchmark: wait for a line, do one unit of work, say what it took.

A worker writes one JSON line when it is ready and one after each lap; an empty line, or the end of its input, ends it.
The line ``count`` asks for a lap whose floating-point operations are counted; its times mean nothing.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop

ATTENTION = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def attended(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Operations of the attention that torch's counter does not know on a CPU; its shapes alone count."""
    return sdpa_flop(query, key, value)


def counter() -> FlopCounterMode:
    """Counts the operations of matrix products, the backward's and attention's included."""
    return FlopCounterMode(display=False, custom_mapping={ATTENTION: attended, ATTENTION_BACKWARD: attended_backward})


ATTENTION_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def attended_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    """Two and a half times the forward: the scores once more and four products."""
    return int(2.5 * sdpa_flop(query, key, value))


def matrix_rate(size: int = 512) -> float:
    """Operations a second of processor time of a square matrix product in fp32: the best of five."""
    a = torch.ones(size, size)
    best = 0.0
    for _ in range(5):
        started = time.process_time()
        a @ a
        best = max(best, 2 * size**3 / (time.process_time() - started))
    return best


def resident(key: str) -> float:
    """A line of /proc/self/status in MiB: VmRSS now, VmHWM at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(key))


class Laps:
    """Times of a unit of work on the clock and of the processor, and the peak of memory above that after imports."""

    def __init__(self) -> None:
        """Call when everything is imported and nothing is loaded."""
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what libraries print is no answer
        self._imports = resident("VmRSS")
        self._ready = False
        self._counter: FlopCounterMode | None = None
        self._started = (0.0, 0.0)

    def begin(self, **said: Any) -> None:
        """Wait for the starting line; the first time, say that everything is ready."""
        if not self._ready:
            self._say(ready=True, imports_mb=self._imports, loaded_mb=resident("VmRSS") - self._imports, **said)
            self._ready = True
        command = sys.stdin.readline().strip()
        if not command:
            os._exit(0)
        self._counter = counter() if command == "count" else None
        if self._counter is not None:
            self._counter.__enter__()
        self._started = time.perf_counter(), time.process_time()

    def end(self, **said: Any) -> None:
        """One unit of work is done."""
        wall, cpu = time.perf_counter() - self._started[0], time.process_time() - self._started[1]
        counted = None
        if self._counter is not None:
            self._counter.__exit__(None, None, None)
            counted = self._counter.get_total_flops()
        peak = resident("VmHWM") - self._imports
        self._say(wall_s=wall, cpu_s=cpu, peak_mb=peak, counted=counted, matrix_rate=matrix_rate(), **said)

    def _say(self, **what: Any) -> None:
        print(json.dumps(what), file=self._out, flush=True)
