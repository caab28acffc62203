"""Nothing reports home, also when a command is typed by hand and no variable is set."""

import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.cli

TRAP = """
import socket
known, ask = ("localhost", "127.0.0.1", "::1", None, ""), socket.getaddrinfo
def trapped(host, *rest, **more):
    if host in known:
        return ask(host, *rest, **more)
    with open({file!r}, "a") as file:
        file.write(f"{{host}}\\n")
    raise OSError("trapped")
socket.getaddrinfo = trapped
"""


class Bare:
    """A process with a home of its own, without any of this process's variables, that cannot look up a host."""

    def __init__(self, folder):
        self.home, self.file = folder / "home", folder / "hosts"
        (folder / "trap").mkdir()
        self.home.mkdir()
        (folder / "trap" / "sitecustomize.py").write_text(TRAP.format(file=str(self.file)))
        paths = [str(folder / "trap"), os.environ.get("PYTHONPATH", "")]
        self.variables = {"HOME": str(self.home), "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join(paths)}

    def run(self, *words, **where):
        return subprocess.run(
            [sys.executable, *words], env=self.variables, capture_output=True, text=True, timeout=180, check=True,
            **where,
        ).stdout  # fmt: skip

    def traces(self):
        """The hosts that were asked for, and the identities that were written for telemetry."""
        hosts = self.file.read_text().split() if self.file.exists() else []
        return hosts + [path.name for path in self.home.rglob("*telemetry*")]


def test_a_run_typed_by_hand_leaves_no_trace(project, tmp_path):
    bare = Bare(tmp_path)
    before = (project.root / "pyproject.toml").read_text()
    bare.run("-m", "kedro", "run", "--env=test", "--pipelines=data_processing", cwd=project.root)
    assert (project.data / "03_primary/prompts_train.jsonl").exists()
    assert bare.traces() == []
    assert (project.root / "pyproject.toml").read_text() == before


def test_the_trap_sees_what_a_library_does_on_its_own(tmp_path):
    bare = Bare(tmp_path)
    bare.run("-c", "import mlflow", cwd=tmp_path)
    assert bare.traces() == ["telemetry.json"]


def test_the_package_leaves_no_trace_of_hugging_face(tmp_path):
    bare = Bare(tmp_path)
    script = "import gemma_alignment; from huggingface_hub import constants; print(constants.HF_HUB_DISABLE_TELEMETRY)"
    assert bare.run("-c", script, cwd=tmp_path).split() == ["True"]
