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
    "grpo-mid": "GRPO iteration, mid", "grpo-mid-kept": "GRPO iteration, mid; TRL's process keeps freed memory too",
    "ppo": "PPO iteration, base; TRL's critic is trained whole",
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
        "GFLOP, ours / TRL's | tokens a response, ours / TRL's | commit, load |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in found["cases"]:
        ours, theirs = row["counted"]
        target = f"≥ {row['target']}" if row["target"] else "–"
        lengths = f"{row['ours_length']:.1f} / {row['theirs_length']:.1f}" if row["theirs_length"] else "–"
        lines.append(
            f"| {NAMES[row['case']]} | {row['trl']} | {row['laps']} | **{spread(row['ratio_cpu'])}** | "
            f"{spread(row['ratio_wall'])} | {target} | "
            f"{row['memory_ratio']:.2f} ({row['ours_peak_mb']:.0f} / {row['theirs_peak_mb']:.0f} MiB) | "
            f"{ours / 1e9:.1f} / {theirs / 1e9:.1f} | {lengths} | "
            f"{row['machine']['commit']}, {row['machine']['load'][0]} |"
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


def levers(found: dict[str, Any]) -> str:
    """What each lever is worth."""
    lines = ["| switched off | times as slow | GFLOP | peak memory, MiB |", "|---|---|---|---|"]
    lines += [
        f"| {row['lever'] or 'nothing'} | {spread(row['slower'])} | {row['gflop']:.1f} | {row['peak_mb']:.0f} |"
        for row in found["rows"]
    ]
    return "\n".join([*lines, "", f"*{where(found['machine'])}; {found['laps']} rounds.*"])


def scaling(found: dict[str, Any]) -> str:
    """Lines through the points of each axis."""
    lines = ["| against | points | seconds, R² | seconds | memory, R² | memory, MiB |", "|---|---|---|---|---|---|"]
    for axis, row in found.items():
        if "points" not in row or axis == "rows":
            continue
        seconds, memory, sizes = row["seconds"], row["memory"], ", ".join(f"{p['size']:,}" for p in row["points"])
        lines.append(
            f"| {AXES[axis]} | {sizes} | {seconds['r2']:.3f} | {seconds['intercept']:.3f} + {seconds['slope']:.2e} n | "
            f"{memory['r2']:.3f} | {memory['intercept']:.0f} + {memory['slope']:.2e} n |"
        )
    if "tokens" in found:
        line = found["tokens"]
        shown = f"{line['r2']:.3f} | {line['intercept']:.3f} + {line['slope']:.2e} n"
        lines.append(f"| generated tokens | both | {shown} | | |")
    text = "\n".join(lines)
    if "rows" in found:
        row = found["rows"]
        shown = "; ".join(f"{p['size']:,}: {p['cpu_s']:.3f} s, {p['resident_mb']:.0f} MiB" for p in row["points"])
        slope = [100 * row["seconds"][key] for key in ("slope", "slope_low", "slope_high")]
        text += (
            f"\n\nRows to train on ({shown}): seconds change by {slope[0]:+.1f}% a decade "
            f"[{slope[1]:+.1f}, {slope[2]:+.1f}], resident memory by {100 * row['memory']['slope']:+.1f}% a decade."
        )
    machines = [{"machine": row["machine"]} for row in found.values() if "machine" in row]
    return f"{text}\n\n{places(machines)}"


def study(found: dict[str, Any]) -> str:
    """Starts of processes, workers, and processes of a run."""
    text = []
    if "start" in found:
        row = found["start"]
        text += [
            "| a process of the study | processor, s | clock, s |", "|---|---|---|",
            *(f"| {name} | {row[f'{how}_cpu_s']:.1f} | {row[f'{how}_wall_s']:.1f} |"
              for how, name in (("cold", "started anew"), ("warm", "from the server"))),
            "", f"*{where(row['machine'])}; median of {len(row['rounds'])} rounds.*",
        ]  # fmt: skip
    if "workers" in found:
        row = found["workers"]
        counts = sorted(row["rounds"][0])
        text += [
            "", "| workers | seconds of a study, by round |", "|---|---|",
            *(f"| {n} | {', '.join(format(one[n], '.0f') for one in row['rounds'])} |" for n in counts),
            "", *(f"{n} are {a:.2f} [{b:.2f}–{c:.2f}] times as fast as one." for n, (a, b, c) in row["faster"].items()),
            "", f"*{row['iterations']} iterations an arm. {where(row['machine'])}.*",
        ]  # fmt: skip
    if "processes" in found:
        row = found["processes"]
        text += [
            "", "| processes of a GRPO run | seconds an iteration, by round |", "|---|---|",
            *(f"| {n} | {', '.join(format(one[n], '.3f') for one in row['rounds'])} |" for n in ("1", "2")),
            "", f"Two make use of {row['efficiency']:.2f} [{row['least']:.2f}–{row['largest']:.2f}] of two cores.",
            "", f"*Medians of {row['iterations']} iterations. {where(row['machine'])}.*",
        ]  # fmt: skip
    return "\n".join(text)


AXES = {
    "responses": "responses an iteration", "response": "tokens of a response", "prompt": "tokens of a prompt",
    "model": "hidden size; n: parameters",
}  # fmt: skip
TABLES: dict[str, tuple[str, Callable[[dict[str, Any]], str]]] = {
    "peers": ("peers.json", peers),
    "limits": ("peers.json", limits),
    "levers": ("levers.json", levers),
    "scaling": ("scaling.json", scaling),
    "study": ("study.json", study),
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
