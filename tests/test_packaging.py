"""Set-up: whatever is installed is pinned, and every file that the tools read is there."""

import importlib.metadata
import re
import tomllib
from pathlib import Path

import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).parents[1]
OF_TORCH = ("nvidia-", "cuda-", "triton")
"""Libraries of a CUDA build, whose versions torch names."""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, Version]:
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    found = {canonical(name): Version(version) for name, version in pairs}
    assert len(found) == len(pairs), "a package is pinned twice"
    return found


def declared() -> list[Requirement]:
    """What the project asks for, the extras included, of which one may name others of its own."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = [line for lines in project["optional-dependencies"].values() for line in lines]
    needs = [Requirement(line) for line in (*project["dependencies"], *extras)]
    return [need for need in needs if canonical(need.name) != canonical(project["name"])]


def installed() -> set[str]:
    """Every distribution here that the project needs, directly or through others."""
    found: set[str] = set()
    queue = [(need.name, extra) for need in declared() for extra in (*need.extras, "")]
    seen = set(queue)
    while queue:
        name, extra = queue.pop()
        try:
            needs = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue  # an extra that is not installed here
        found.add(canonical(name))
        for need in map(Requirement, needs):
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                new = {(need.name, more) for more in (*need.extras, "")} - seen
                seen |= new
                queue += new
    return {name for name in found if not name.startswith(OF_TORCH) and name != "pip"}  # what installs is not pinned


def test_every_package_of_an_installation_is_pinned() -> None:
    here = installed()
    assert {"torch", "mlflow", "matplotlib", "pytest"} <= here  # matplotlib: through mlflow alone
    assert here - pins().keys() == set()


def test_no_pin_has_a_local_version_label() -> None:
    assert [name for name, version in pins().items() if version.local] == []


def test_the_pins_are_what_the_project_allows() -> None:
    known = pins()
    refused = [str(need) for need in declared() if known[canonical(need.name)] not in need.specifier]
    assert refused == []


def test_the_hooks_before_a_commit_are_the_checks_of_make_lint() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    entries = [hook["entry"].split()[0] for repository in config["repos"] for hook in repository["hooks"]]
    target = re.search(r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert target is not None
    commands = [line.split()[0].replace("$(BIN)", ".venv/bin") for line in target[1].splitlines() if line[1] != "@"]
    assert entries == commands
