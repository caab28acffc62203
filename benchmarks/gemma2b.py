"""Peak memory per phase of PPO and GRPO on one base and on separate copies, and the same from shapes alone.

    python benchmarks/gemma2b.py                 # on CUDA: Gemma-2B at its true shapes, random weights, in 4 bits
                                                 # on a CPU: small models with Gemma's vocabulary of 256,000

    python benchmarks/gemma2b.py --rates         # on CUDA: only what the hours of a dry run are computed from

Every row is measured by `measure.py` in a process of its own. Beside each measured peak stands what
`gemma_alignment.modeling.memory` says of the same shapes. Results go to `benchmarks/results/`.
"""

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from gemma_alignment.dotted import merged
from gemma_alignment.modeling.memory import GEMMA_2B, Holding, Shape, Work, phases

HERE = Path(__file__).parent
MB = 2**20
RETURN_AT_ONCE = {
    "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536",
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "1", "LRU_CACHE_CAPACITY": "1",
}  # fmt: skip
"""glibc gives a freed buffer back at once, and no kernel made for one shape is kept (in bf16 a CPU makes one for every
length, 20 MB of them in a rollout of 64 tokens): the resident set follows what is allocated."""
WIDE = Shape(32_000, 512, 4, 4, 1, 128, 4096)
SMALL = {
    "d64": (Shape(256_000, 64, 2, 4, 1, 16, 256), "none", "float32", Work(6, 6, 6, 192, 8)),
    "d128": (Shape(256_000, 128, 4, 4, 1, 32, 1024), "none", "float32", Work(6, 6, 6, 192, 8)),
    "d256": (Shape(256_000, 256, 4, 8, 1, 32, 2048), "none", "float32", Work(12, 12, 6, 192, 8)),
    "wide bf16": (WIDE, "none", "bfloat16", Work(1, 2, 2, 960, 64)),
    "wide nf4": (WIDE, "nf4", "float32", Work(1, 2, 2, 960, 64)),
    "wide nf4 bf16": (WIDE, "nf4", "bfloat16", Work(1, 2, 2, 960, 64)),
}
"""For a CPU: shape, quantisation, type, and what is in memory at a time. Three sizes in fp32; in bf16 and 4 bits one
whose layers weigh more than its table, as those of Gemma-2B do."""
LOW = {"modeling": {"optimizer": "paged_adam_8bit", "embedding": "int8"}}


def gemma2b(low_memory: bool) -> tuple[Holding, Work]:
    """The real study's configuration as it stands in conf, longest prompt and response."""
    files = ("conf/base/parameters_modeling.yml", "conf/base/parameters_policy_optimization.yml",
             "conf/base/parameters_data_processing.yml", "conf/base/parameters_grpo.yml",
             "conf/gemma2b/parameters.yml")  # fmt: skip
    tree: dict[str, Any] = {}
    for name in files:
        tree = merged(tree, yaml.safe_load((HERE.parent / name).read_text()))
    tree = merged(tree, LOW if low_memory else {})
    rollout = tree["rollout"]
    work = Work(
        tree["policy_optimization"]["microbatch_size"], rollout["batch_size"], tree["grpo"]["group_size"],
        tree["preferences"]["max_prompt_tokens"], rollout["max_new_tokens"],
    )  # fmt: skip
    return Holding.of(tree["modeling"], rollout), work


def cases(cuda: bool, sizes: list[str]) -> list[tuple[str, Shape, Holding, Work]]:
    """Name, shape and setting of every model that is measured, each for both methods and both ways of sharing."""
    if not cuda:
        return [small(name) for name in sizes]
    return [("gemma2b low_memory" if low else "gemma2b", GEMMA_2B, *gemma2b(low)) for low in (False, True)]


def small(name: str) -> tuple[str, Shape, Holding, Work]:
    """A model for a CPU."""
    shape, quantization, dtype, work = SMALL[name]
    return name, shape, Holding(quantization, dtype, 16, True, "adam", "sft_merged", "one_base", "adapter"), work


def asked_for(shape: Shape, hold: Holding, work: Work, method: str) -> dict[str, Any]:
    """A row to be measured; PPO has one response a prompt."""
    own = dataclasses.replace(work, group_size=1) if method == "ppo" else work
    sizes = list(dataclasses.astuple(shape))[:7]
    return {"shape": sizes, "hold": dataclasses.asdict(hold), "work": dataclasses.asdict(own), "method": method}


def measured(rows: list[dict[str, Any]], cuda: bool) -> list[dict[str, Any]]:
    """The rows with their peaks, and what the memory model says of the same shapes.

    Each in a process of its own: on a CPU forked by one that has loaded every library; a process that uses CUDA cannot
    be forked, so there each loads them itself. Weights to be quantised are drawn once for all rows of a shape.
    """
    found = []
    with tempfile.TemporaryDirectory() as folder:
        kept = [
            {**row, "kept": f"{folder}/{row['hold']['dtype']}-{'-'.join(map(str, row['shape']))}"} for row in rows
        ]
        for part in [[row] for row in kept] if cuda else [kept]:
            done = subprocess.run(
                [sys.executable, str(HERE / "measure.py"), json.dumps(part)], text=True, check=True,
                stdout=subprocess.PIPE, env={**os.environ, **RETURN_AT_ONCE},
            )  # fmt: skip
            found += [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    if len(found) < len(rows):
        raise SystemExit(f"{len(rows) - len(found)} of {len(rows)} rows ended without a result: see above")
    return [estimated({key: value for key, value in row.items() if key != "kept"}) for row in found]


def estimated(row: dict[str, Any]) -> dict[str, Any]:
    """The row with what the memory model says of the same shapes."""
    hold, work = Holding(**row["hold"]), Work(**row["work"])
    for name, value in phases(Shape(*row["shape"]), hold, work, critic=row["method"] == "ppo").items():
        row["phases"][name]["estimated_mb"] = value / MB
    return row


def table(rows: list[tuple[str, dict[str, Any]]]) -> Iterator[str]:
    """Markdown: a line a model, method and way of sharing."""
    names = ("load", "rollout", "score", "policy backward", "critic backward", "optimizer")
    yield f"| model | method | bases | {' | '.join(names)} | peak | tokens/s | utilisation |"
    yield "|---" * (len(names) + 6) + "|"
    for model, row in rows:
        cells = [_cell(row["phases"].get(name)) for name in names]
        yield (
            f"| {model} | {row['method']} | {row['hold']['sharing']} | {' | '.join(cells)} | {_cell(_peak(row))} | "
            f"{row['tokens_per_second']:.0f} | {row['utilisation']:.0%} |"
        )


def _peak(row: dict[str, Any]) -> dict[str, float]:
    """The largest of every column over the phases."""
    keys = ("allocated_mb", "reserved_mb", "estimated_mb")
    return {key: max(found[key] for found in row["phases"].values()) for key in keys}


def _cell(found: dict[str, float] | None) -> str:
    """``measured (estimated, deviation)`` in MiB."""
    if found is None:
        return "–"
    off = found["estimated_mb"] / found["allocated_mb"] - 1
    reserved = "" if found["reserved_mb"] == found["allocated_mb"] else f" / {found['reserved_mb']:.0f}"
    return f"{found['allocated_mb']:.0f}{reserved} ({found['estimated_mb']:.0f}, {off:+.0%})"


def rates_block(rows: list[dict[str, Any]]) -> Iterator[str]:
    """YAML for ``rates`` in conf/gemma2b, over those of conf/base: the slower of the rows on one base."""
    shared = [row for row in rows if row["hold"]["sharing"] == "one_base"]
    yield "rates:"
    for name in shared[0]["rates"]:
        yield f"  {name}: {min(row['rates'][name] for row in shared):.4g}"
    yield f"  measured_on: {json.dumps(shared[0]['device'])}"


def estimated_table() -> Iterator[str]:
    """Markdown: Gemma-2B at its true shapes, in GB of 10^9 bytes, as the real study is configured."""
    names = ("load", "rollout", "score", "policy backward", "critic backward", "optimizer")
    yield f"| setting | method | bases | {' | '.join(names)} | peak |"
    yield "|---" * (len(names) + 4) + "|"
    for low in (False, True):
        hold, work = gemma2b(low)
        for sharing in ("one_base", "separate_copies"):
            for method in ("grpo", "ppo"):
                own = dataclasses.replace(work, group_size=1) if method == "ppo" else work
                held = dataclasses.replace(hold, sharing=sharing)
                found = phases(GEMMA_2B, held, own, critic=method == "ppo")
                cells = [f"{found[name] / 1e9:.2f}" if name in found else "–" for name in names]
                peak = f"**{max(found.values()) / 1e9:.2f}**"
                setting = "low_memory" if low else "default"
                yield f"| {setting} | {method} | {sharing} | {' | '.join(cells)} | {peak} |"


def main() -> None:
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default=",".join(SMALL), help="of the small models, on a CPU")
    parser.add_argument("--sharing", default="one_base,separate_copies")
    parser.add_argument("--again", type=Path, help="a file of results: print its table, with today's estimates")
    parser.add_argument("--estimates", action="store_true", help="the table from shapes alone; measure nothing")
    parser.add_argument("--rates", action="store_true", help="on CUDA: one base as configured, and only its rates")
    asked = parser.parse_args()
    print("\n".join(["Gemma-2B, *estimated* (GB):", "", *estimated_table(), ""]))
    if asked.estimates:
        return
    if asked.again:
        kept = json.loads(asked.again.read_text())["rows"]
        print("\n".join(table([(row["model"], estimated(row)) for row in kept])))
        return
    cuda = torch.backends.cuda.is_built() and torch.cuda.device_count() > 0
    if asked.rates and not cuda:
        parser.error("--rates needs a CUDA GPU: the rates of a small model on a CPU say nothing of Gemma-2B")
    names, wanted = [], []
    for name, shape, hold, work in cases(cuda, asked.sizes.split(","))[: 1 if asked.rates else None]:
        for sharing in ["one_base"] if asked.rates else asked.sharing.split(","):
            for method in ("grpo", "ppo"):
                names.append(name)
                wanted.append(asked_for(shape, dataclasses.replace(hold, sharing=sharing), work, method))
    report(list(zip(names, measured(wanted, cuda), strict=True)), cuda, keep=not asked.rates)


def report(rows: list[tuple[str, dict[str, Any]]], cuda: bool, keep: bool) -> None:
    """Print the table, on CUDA the rates of the study as configured too, and keep the results."""
    device = rows[0][1]["device"]
    print("\n".join([f"Measured on {device}, MiB (estimated, deviation):", "", *table(rows)]))
    if cuda:
        print("\nFor conf/gemma2b/parameters.yml, so that the hours of a dry run are those of this GPU:\n")
        print("\n".join(rates_block([row for name, row in rows if name == "gemma2b"])))
    if keep:
        import torch

        machine = {"device": device, "processor": platform.processor() or platform.machine()}
        path = HERE / "results" / f"gemma2b-{device.lower().replace(' ', '-')}.json"
        path.parent.mkdir(exist_ok=True)
        found = {"machine": {**machine, "torch": torch.__version__}, "rows": [{"model": n, **r} for n, r in rows]}
        path.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
