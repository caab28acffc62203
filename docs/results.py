"""Writes the results of a finished study into the README and ``docs/pipeline.md``, and figures into ``docs/images``.

    .venv/bin/python docs/results.py                      # reads data/08_reporting
    .venv/bin/python docs/results.py --data data/mine --machine "8 cores of ..."
    .venv/bin/python docs/results.py --check              # exit status 1 where the README says something else
"""

import argparse
import json
import platform
import re
import shutil
import sys
from dataclasses import fields
from pathlib import Path

from gemma_alignment.parameters import section_class
from gemma_alignment.report import wording
from gemma_alignment.report.formatting import NONE, bounds, name_of, number, percent, percent_bounds, signed
from gemma_alignment.report.metrics import COSTS, METRICS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PIPELINE = ROOT / "docs" / "pipeline.md"
BLOCK = re.compile(r"(?<=<!-- results: docs/results.py -->\n).*?(?=<!-- end of results -->)", re.DOTALL)
FIGURES = ("forest", "wins", "curve-eval-score-mean")
COSTS_SHOWN = ("budget/responses", "budget/flops", "budget/seconds", "memory/peak_mb")


def processor():
    """The model of the processor and how many cores this process may use."""
    import os

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    return f"{cores} cores of {found[1].strip() if found else platform.machine()}"


def written(data, machine):
    """The block of the README: verdict, table, machine and date."""
    comparison = json.loads((data / "08_reporting" / "comparison.json").read_text(encoding="utf-8"))
    protocol = comparison["protocol"]
    a, b = protocol["method_a"], protocol["method_b"]
    seeds = len({row["seed"] for row in comparison["runs"] if row["left_out"] is None and row["family"] in (a, b)})
    rows = [*_metrics(comparison, a, b), *_costs(comparison, a, b)]
    versions = f"Python {comparison['versions']['python']}, torch {comparison['versions']['torch']}"
    lines = [
        f"**{wording.headline(comparison['verdict'], protocol)}** {wording.evidence(comparison)}",
        *(text for one in comparison["cautions"] for text in ("", f"*Caution:* {one}")),
        "",
        f"| mean of {seeds} seed{'s' if seeds != 1 else ''} | {name_of(a)} | {name_of(b)} | difference, 95% interval "
        "| Cohen’s d, 95% interval |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"`kedro study`, {machine}, {versions}, {_ended(data)}. Intervals over seeds: Welch’s for differences, "
        "noncentral t for d.",
    ]
    return "\n".join(lines) + "\n"


def _metrics(comparison, a, b):
    won = (comparison["win_rates"].get(f"{a}_vs_{b}") or {}).get("crossed")
    if won:
        interval = percent_bounds(comparison["verdict"]["low"], comparison["verdict"]["high"])
        shown = NONE if interval == NONE else f"{name_of(a)} {interval}"
        rates = percent(won["estimate"]), percent(1.0 - won["estimate"])
        yield ["Head-to-head win rate, a tie one half", *rates, shown, NONE]
    for name, block in comparison["metrics"].items():
        if block["role"] != "secondary":
            continue
        decimals = METRICS[name].decimals
        difference, effect = block["difference"], block["cohens_d"]
        yield [
            f"{block['label']}{_unit(block)}",
            *(number(block["mean"].get(family), decimals) for family in (a, b)),
            _with(signed(difference["estimate"], decimals), bounds(difference["low"], difference["high"], decimals)),
            _with(signed(effect["d"], 2), bounds(effect["d_low"], effect["d_high"], 2)),
        ]


def _with(value, interval):
    return value if interval == NONE else f"{value} {interval}"


def _costs(comparison, a, b):
    for name in COSTS_SHOWN:
        block = comparison["costs"].get(name)
        if block and any(block["per_seed"].values()):
            means = (number(block["mean"].get(family), COSTS[name].decimals) for family in (a, b))
            yield [f"{block['label']}{_unit(block)}", *means, "", ""]


def tradeoffs(data):
    """The block of ``docs/pipeline.md``: what was expected of each method, and what was measured."""
    comparison = json.loads((data / "08_reporting" / "comparison.json").read_text(encoding="utf-8"))
    protocol = comparison["protocol"]
    a, b = protocol["method_a"], protocol["method_b"]
    stable = {one["family"]: one for one in comparison["stability"] if one["family"] in (a, b)}
    rows = [
        ["Stability", "high (GAE, critic)", "medium (group variance)", *(_spread(stable.get(m)) for m in (a, b))],
        ["Memory", "4–5 GB (critic)", "2.5 GB", *(_cost(comparison, m, "memory/peak_mb", "MB") for m in (a, b))],
        ["Complexity", "high (critic, GAE)", "medium (group sampling)", *map(_complexity, (a, b))],
        ["Sensitivity", "high (clip, value_coef, λ)", "medium (K, kl_coef)", *(_varied(comparison, m) for m in (a, b))],
        ["Final quality", "open", "open", *(_quality(comparison, m) for m in (a, b))],
    ]
    lines = [
        f"| | {name_of(a)}, expected at 2B | {name_of(b)}, expected at 2B | {name_of(a)}, measured embedded "
        f"| {name_of(b)}, measured embedded |",
        "|---|---|---|---|---|",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
        f"Measured by the study of {_ended(data)}, whose results stand in the README. A tiny model's memory is mostly "
        "the process itself, so it says little of the expected figures, which are for 4 bits on a GPU and unmeasured.",
    ]
    return "\n".join(lines) + "\n"


def _spread(block):
    if block is None or block["sd"] is None:
        return "not estimable"
    worst = block["drawdown"]["eval/score_mean"]["worst"]
    return f"sd over seeds {number(block['sd'], 2)} {bounds(block['sd_low'], block['sd_high'], 2)}, " + (
        f"worst drawdown {number(worst, 2)}"
    )


def _cost(comparison, family, name, unit):
    mean = comparison["costs"][name]["mean"].get(family)
    return f"{number(mean, COSTS[name].decimals)} {unit}"


def _complexity(method):
    section = section_class(method)
    lines = (ROOT / "src/gemma_alignment/training/methods" / f"{method}.py").read_text(encoding="utf-8").splitlines()
    return f"{len(fields(section))} settings, {len(lines)} lines{', a critic' if section.needs_critic else ''}"


def _varied(comparison, method):
    parameters = sorted({one["parameter"] for one in comparison["sensitivity"] if one["method"] == method})
    return f"the report's section on {', '.join(parameters)}" if parameters else "not measured"


def _quality(comparison, family):
    gold = comparison["metrics"].get("eval/gold_mean") or comparison["metrics"]["eval/score_mean"]
    return f"{gold['label'].lower()} {number(gold['mean'].get(family), 2)}"


def _unit(block):
    return f", {block['unit']}" if block["unit"] else ""


def _ended(data):
    cards = (data / "07_model_output").glob("*/seed=*/run.json")
    return max(str(json.loads(card.read_text(encoding="utf-8"))["ended"]) for card in cards)[:10]


def main():
    """Write, or with ``--check`` compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ROOT / "data", help="the study's data folder")
    parser.add_argument("--machine", default=processor(), help="what it ran on; this machine unless said otherwise")
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    for document, block in ((README, written(asked.data, asked.machine)), (PIPELINE, tradeoffs(asked.data))):
        text = document.read_text(encoding="utf-8")
        new = BLOCK.sub(lambda _, block=block: block, text, count=1)
        if asked.check and new != text:
            sys.exit(f"{document.name} shows other results: run docs/results.py")
        document.write_text(new, encoding="utf-8")
    for name in FIGURES:
        shutil.copy(asked.data / "08_reporting" / "figures" / f"{name}.svg", ROOT / "docs" / "images")


if __name__ == "__main__":
    main()
