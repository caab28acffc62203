"""Write the tables of `benchmarks/README.md` from what stands in `benchmarks/results/`.

    python benchmarks/tables.py
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE / "README.md"
NAMES = {
    "grpo": "GRPO iteration, base", "grpo-portable": "GRPO iteration, base, portable path",
    "grpo-mid": "GRPO iteration, mid", "ppo": "PPO iteration, base; TRL's critic is trained whole",
    "ppo-equal-critic": "PPO iteration, base; both critics are adapters of rank 16", "sft": "SFT, base",
    "reward-model": "reward model, base",
}  # fmt: skip


def spread(values: list[float], digits: int = 2) -> str:
    """Median [smallest–largest]."""
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} [{low}–{high}]"


def where(machine: dict[str, Any]) -> str:
    """One sentence on machine, load, date and versions."""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    return (
        f"{machine['cores']} cores of {machine['processor']}, load {machine['load'][0]}, Python {machine['python']}, "
        f"{versions}; commit {machine['commit']}, {machine['date']}"
    )


def places(rows: list[dict[str, Any]]) -> str:
    """Where the rows come from, each place once."""
    return "\n".join(dict.fromkeys(f"*{where(row['machine'])}.*" for row in rows))


def peers(found: dict[str, Any]) -> str:
    """Ours against TRL."""
    lines = [
        "| job | TRL | rounds | faster, processor time | faster, clock | target | peak memory, ours / TRL's | "
        "GFLOP, ours / TRL's | tokens a response, ours / TRL's |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["cases"]:
        ours, theirs = row["counted"]
        lengths = f"{row['ours_length']:.1f} / {row['theirs_length']:.1f}" if row["theirs_length"] else "–"
        lines.append(
            f"| {NAMES[row['case']]} | {row['trl']} | {row['laps']} | **{spread(row['ratio_cpu'])}** | "
            f"{spread(row['ratio_wall'])} | ≥ {row['target']} | "
            f"{row['memory_ratio']:.2f} ({row['ours_peak_mb']:.0f} / {row['theirs_peak_mb']:.0f} MiB) | "
            f"{ours / 1e9:.1f} / {theirs / 1e9:.1f} | {lengths} |"
        )
    return "\n".join([*lines, "", places(found["cases"])])


def limits(found: dict[str, Any]) -> str:
    """Distance to the limit of the matrix product."""
    lines = ["| job | ours | TRL's |", "|---|---|---|"]
    lines += [
        f"| {NAMES[row['case']]} | {spread(row['ours_over_limit'])} | {spread(row['theirs_over_limit'])} |"
        for row in found["cases"]
    ]
    return "\n".join(lines)


TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "peers": ("peers.json", peers),
    "limits": ("peers.json", limits),
}
"""By the mark in the README: the file of results, and what makes a table of it."""


def main() -> None:
    text = README.read_text()
    for name, (file, make) in TABLES.items():
        begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
        if not (HERE / "results" / file).exists():
            continue
        before, _, rest = text.partition(begin)
        after = rest.partition(end)[2]
        text = f"{before}{begin}\n{make(json.loads((HERE / 'results' / file).read_text()))}\n{end}{after}"
    README.write_text(text)


if __name__ == "__main__":
    main()
