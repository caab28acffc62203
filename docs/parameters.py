"""Writes the tables of every parameter and its default into ``docs/pipeline.md``, from ``conf/base``.

    .venv/bin/python docs/parameters.py            # after a change of conf/base
    .venv/bin/python docs/parameters.py --check    # exit status 1 where the document says something else
"""

import argparse
import json
import re
import sys
from pathlib import Path

import yaml
from kedro.config import OmegaConfigLoader

from gemma_alignment.settings import CONFIG_LOADER_ARGS

ROOT = Path(__file__).parents[1]
BASE = ROOT / "conf" / "base"
DOCUMENT = ROOT / "docs" / "pipeline.md"
BLOCK = re.compile(r"(?<=<!-- parameters: docs/parameters.py -->\n).*?(?=<!-- end of parameters -->)", re.DOTALL)
STAGES = (
    "", "_study", "_data_processing", "_modeling", "_sft", "_reward_model", "_policy_optimization", "_ppo", "_grpo",
    "_rloo", "_dr_grpo", "_evaluation", "_reporting",
)  # fmt: skip
LINE = re.compile(r"(?P<indent> *)(?P<key>[\w.]+):(?P<value>[^#]*?)(?:\s+# (?P<comment>.*))?")


def flat(values, prefix=""):
    """(dotted name, value), sections opened."""
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def comments(text):
    """Dotted name -> what stands behind it, with the lines below that go on."""
    found, open_, last = {}, [], None
    for line in text.splitlines():
        match = LINE.fullmatch(line)
        if match:
            open_ = [*open_[: len(match["indent"]) // 2], match["key"]]
            last = ".".join(open_)
            found[last] = match["comment"] or ""
        elif last and re.match(r" {20,}# ", line):
            found[last] += f" {line.strip()[2:]}"
    return found


def shown(value):
    """A value as the YAML files have it."""
    return value if isinstance(value, str) and value else json.dumps(value, ensure_ascii=False)


def tables():
    """A table a file, in the order of the stages."""
    resolved = dict(flat(OmegaConfigLoader(str(ROOT / "conf"), env="base", **CONFIG_LOADER_ARGS)["parameters"]))
    files = [BASE / f"parameters{stage}.yml" for stage in STAGES]
    left = {path.name for path in BASE.glob("parameters*.yml")} - {path.name for path in files}
    if left:
        sys.exit(f"docs/parameters.py does not know where {', '.join(sorted(left))} belongs")
    lines = []
    for path in files:
        text = path.read_text(encoding="utf-8")
        said = comments(text)
        lines += [f"`conf/base/{path.name}`", "", "| parameter | default | |", "|---|---|---|"]
        for name, _ in flat(yaml.safe_load(text)):
            meaning = said.get(name, "").replace("|", "/")
            lines.append(f"| `{name}` | `{shown(resolved[name])}` | {meaning} |".replace("|  |", "| |"))
        lines.append("")
    return "\n".join(lines)


def main():
    """Write, or with ``--check`` compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    asked = parser.parse_args()
    text = DOCUMENT.read_text(encoding="utf-8")
    new = BLOCK.sub(lambda _: tables(), text, count=1)
    if asked.check:
        sys.exit("docs/pipeline.md shows other defaults: run docs/parameters.py" if new != text else 0)
    DOCUMENT.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main()
