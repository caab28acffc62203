"""Every command of the README: run as it is, dry, or started and stopped; ``-m readme --collect-only`` lists them."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from gemma_alignment import __version__
from gemma_alignment.cli import cli

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
COMMANDS = [line.partition("  #")[0].strip() for block in BLOCKS for line in block.splitlines() if line.strip()]
EXPECTED = {  # target of make -> what it must come to
    "make study": "kedro study",
    "make study QUICK=1": "kedro study --quick",
    "make ui": "kedro study ui",  # started and stopped in browser/test_mlflow.py
    "make viz": "kedro viz run",  # built and opened in browser/test_viz.py
    "make viz BUILD=1": "kedro viz build --include-previews",
    "make test": "-m pytest",
    "make lint": "lint-imports",
}
pytestmark = pytest.mark.readme


def commands(start):
    found = [one for one in COMMANDS if one.startswith(start)]
    assert found, f"no command of the README begins with {start}"
    return pytest.mark.parametrize("command", found)


def test_no_command_is_left_out():
    known = ("make ", "kedro study", "kedro run ", "python -m gemma_alignment chat", "xdg-open ", "export ")
    assert [one for one in COMMANDS if not one.startswith(known)] == []
    assert {one for one in COMMANDS if one.startswith("make ")} == set(EXPECTED)


@commands("make ")
def test_make_dry(command):
    done = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert EXPECTED[command] in done.stdout


@commands("kedro study")
def test_study_dry(command, project, monkeypatch):
    """The hub, the GPU and the hours are left out; everything that is checked before a study starts is not."""
    from kedro.framework.startup import bootstrap_project

    bootstrap_project(project.root)
    words = shlex.split(command)[1:]
    (project.root / "pairs.jsonl").write_text("")
    done = CliRunner().invoke(cli, [*words, *([] if "status" in words else ["--dry-run"])])
    if "--env=gemma2b" in words:  # here are neither credentials nor the model: it says so, and what the rest would take
        assert done.exit_code == 1
        assert "NOT SET" in done.output and "GPU hours" in done.output and "Traceback" not in done.output
    else:
        assert done.exit_code == 0, done.output
    assert "grpo" in done.output


@pytest.mark.pipeline
@pytest.mark.cli
def test_one_arm_one_seed(project):
    project.run("data_processing", "sft", "reward_model")
    arms = [one for one in COMMANDS if one.startswith("kedro run --pipeline=grpo")]
    for command in arms:
        code, text = project.command(*shlex.split(command), timeout=600, KEDRO_ENV="test")
        assert code == 0, text
    assert {"grpo-seed777", "grpo@k4-seed777"} <= set(project.states())


@pytest.mark.slow
@pytest.mark.pipeline
@pytest.mark.cli
@commands("kedro run --pipeline=export")
def test_export(command, toy_study):
    """On the study's only seed; what an export holds is seen in pipelines/test_export.py."""
    words = shlex.split(f"{command},data_root=data".replace("777", "42"))
    code, text = toy_study.command(*words, timeout=600, KEDRO_ENV="test")
    assert code == 0, text


@pytest.mark.slow
@pytest.mark.pipeline
@pytest.mark.cli
@commands("python -m gemma_alignment chat")
def test_chat(command, toy_study):
    """On the study's only seed; what it answers is seen in test_chat.py."""
    words = shlex.split(command.replace("777", "42"))[2:]
    words += ["--params", "data_root=data"]
    code, text = toy_study.command(*words, stdin="Name two birds.\n", timeout=600, KEDRO_ENV="test")
    assert code == 0, text
    assert text.startswith("grpo-seed42: ")


@pytest.mark.pipeline
@commands("xdg-open ")
def test_what_is_opened_is_there(command, toy_study):
    assert (toy_study.root / shlex.split(command)[1]).is_file()
    assert list((toy_study.root / "data/08_reporting/figures").glob("*.svg"))


@pytest.mark.pipeline
def test_the_results_are_written_by_their_script(toy_study, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs"))
    import results

    block = results.written(toy_study.root / "data", "a machine")
    assert "cannot be estimated from one seed" in block
    assert "| Reward-model score" in block
    assert "`kedro study`, a machine, Python" in block
    assert results.BLOCK.search(TEXT)


def test_links_and_pictures_are_there():
    named = re.findall(r"\]\(([^)#]+)\)", TEXT)
    inside = [one for one in named if not one.startswith("http")]
    assert [one for one in inside if not (ROOT / one).exists()] == []


def test_the_citation_is_of_this_version():
    import yaml

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert citation["license"] == "Apache-2.0"
    assert len(citation["references"]) == 5
