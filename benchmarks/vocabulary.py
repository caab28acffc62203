"""A vocabulary of 256,000 on a CPU: how much more a training step needs when responses are twice as long.

    python benchmarks/vocabulary.py

Peak resident set of one policy step (forward, backward, Adam; hidden size 64, the number of micro-batches fixed)
above that of the loaded model, for responses of 32 and of 64 tokens: with logits in chunks, as the study trains,
and with the logits of every position at once. Each of the four in a process of its own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROWS, MICROBATCHES, PROMPT = 4, 2, 16
LENGTHS = (32, 64)
WAYS = ("chunks", "naive")


def child(way: str, length: int) -> float:
    """MiB that the step's peak stands above the loaded model."""
    import torch
    from measure import Meter, opened

    from gemma_alignment.modeling import roles
    from gemma_alignment.modeling.memory import Holding, Shape
    from gemma_alignment.modeling.sequences import sequences

    torch.set_num_threads(1)
    hold = Holding("none", "float32", 16, True, "adam", "sft_merged", "one_base", "adapter")
    model = opened(Shape(256_000, 64, 2, 4, 1, 16, 256), hold, False, torch.device("cpu"))
    model.packing.agrees = True
    if way == "naive":
        vars(roles)["positions_at_a_time"] = lambda vocabulary: 10**9
    optimizer = model.adam("policy", 1e-5)
    chance = torch.Generator().manual_seed(0)
    ids = torch.randint(3, 256_000, (MICROBATCHES, ROWS, PROMPT + length), generator=chance).tolist()
    meter = Meter(torch.device("cpu"))
    with meter.phase("step"):
        for rows in ids:
            batch = sequences([row[:PROMPT] for row in rows], [row[PROMPT:] for row in rows], 0)
            with model.role("policy", train=True):
                model.logprobs(batch, 1.0)[0].mean().backward()
        optimizer.step()
    return meter.peaks["step"]["allocated_mb"]


def growth() -> dict[str, dict[str, float]]:
    """The increase for each way and length, and how much it grows from the shorter to the longer."""
    from gemma2b import RETURN_AT_ONCE

    done = subprocess.run(
        [sys.executable, __file__, "rows"], text=True, check=True, stdout=subprocess.PIPE,
        env={**os.environ, **RETURN_AT_ONCE},
    )  # fmt: skip
    found: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    for line in done.stdout.splitlines():
        way, length, increase = line.split()
        found[way][length] = float(increase)
    for row in found.values():
        row["growth"] = row[str(LENGTHS[1])] / row[str(LENGTHS[0])] - 1
    return found


def rows() -> None:
    """A line for each way and length, each from a process forked when every library is loaded."""
    from measure import warm_up

    warm_up("grpo")
    for way in WAYS:
        for length in LENGTHS:
            if (pid := os.fork()) == 0:
                print(way, length, child(way, length), flush=True)
                os._exit(0)
            os.waitpid(pid, 0)


def main() -> None:
    if len(sys.argv) > 1:
        rows()
        return
    found = growth()
    print("| logits | 32 tokens | 64 tokens | growth |\n|---|---|---|---|")
    for way, row in found.items():
        print(f"| {way} | {row['32']:.0f} MiB | {row['64']:.0f} MiB | {row['growth']:+.0%} |")
    path = HERE / "results" / "vocabulary-cpu.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
