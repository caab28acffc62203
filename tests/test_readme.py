"""Every command of the README: run as it is, or dry, or started and stopped.

``pytest -m readme --collect-only`` lists them all, ``-m outside`` those that need something from outside.
"""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
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
    "make ui": "kedro study ui",
    "make viz": "kedro viz run",
    "make viz BUILD=1": "kedro viz build --include-previews",
    "make test": "-m pytest",
    "make lint": "lint-imports",
}
pytestmark = pytest.mark.readme


def commands(start, outside=None):
    """Those that begin so; marked where they hold what needs something from outside."""
    found = [one for one in COMMANDS if one.startswith(start)]
    assert found, f"no command of the README begins with {start}"
    marks = {True: [pytest.mark.outside], False: []}
    return pytest.mark.parametrize(
        "command", [pytest.param(one, marks=marks[outside is not None and outside in one]) for one in found]
    )


def test_no_command_is_left_out():
    known = ("make ", "kedro study", "kedro run ", "python -m gemma_alignment chat", "xdg-open ", "export ")
    assert [one for one in COMMANDS if not one.startswith(known)] == []
    assert {one for one in COMMANDS if one.startswith("make ")} == set(EXPECTED)


@commands("make ")
def test_make_dry(command):
    done = subprocess.run([*shlex.split(command), "-n"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert EXPECTED[command] in done.stdout


def make(command, *more):
    """The words of a target with what it needs set up already: by whoever runs the tests."""
    ready = (word for name in ("base", "test", "viz") for word in ("-o", f".venv/.{name}"))
    return [*shlex.split(command), f"BIN={Path(sys.executable).parent}", *ready, *more]


def ended(words, folder, environment=None):
    return subprocess.run(words, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.cli
@commands("make study")
def test_make_study_as_far_as_it_goes_without_running(command, real_project):
    words = make(command, "ARGS=--dry-run")
    done = ended(words, real_project.root, real_project.environment({}))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "kedro run --pipelines=grpo" in done.stdout


@pytest.mark.slow
@pytest.mark.cli
def test_make_study_quick(real_project):
    words = make("make study QUICK=1")
    done = ended(words, real_project.root, real_project.environment({}))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (real_project.root / "data/quick/08_reporting/report.html").is_file()


@pytest.mark.cli
def test_make_test_runs_the_tests(tmp_path):
    words = make("make test", "WORKERS=0", f"ARGS=tests/test_docs_adr.py -p no:cacheprovider --basetemp={tmp_path}")
    done = ended(words, ROOT)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.cli
def test_make_lint():
    done = ended(make("make lint", "AUDIT=0"), ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def started_and_stopped(words, project, address, log):
    """What a server answers at ``address``, and what it had said until then."""
    with log.open("wb") as output:
        server = subprocess.Popen(
            words, cwd=project.root, env=project.environment({}), stdout=output, stderr=output, start_new_session=True
        )
    deadline = time.monotonic() + 400
    try:
        while time.monotonic() < deadline:
            assert server.poll() is None, log.read_text()
            try:
                with urllib.request.urlopen(address, timeout=60) as reply:  # noqa: S310 - our own server
                    return reply.read().decode(), log.read_text()
            except OSError:
                time.sleep(0.5)
        return pytest.fail(f"the server did not come up: {log.read_text()}")
    finally:
        if server.poll() is None:  # one that ended by itself is what the error above is about
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=60)


@pytest.mark.outside
@pytest.mark.pipeline
def test_make_ui_is_started_and_stopped(toy_study, free_port, tmp_path):
    words = make("make ui", f"ARGS=--port={free_port}")
    answer, said = started_and_stopped(words, toy_study, f"http://127.0.0.1:{free_port}/health", tmp_path / "log")
    assert answer == "OK"
    assert re.search(rf"The arms side by side: http://127.0.0.1:{free_port}/#/experiments/\d+/runs\?viewState", said)


@pytest.mark.outside
@pytest.mark.pipeline
def test_make_viz_is_started_and_stopped(toy_study, free_port, tmp_path):
    pytest.importorskip("kedro_viz", reason="comes with the viz extra")
    words = make("make viz", f"ARGS=--port={free_port} --no-browser")
    address = f"http://127.0.0.1:{free_port}/api/main"
    answer, _ = started_and_stopped(words, toy_study, address, tmp_path / "log")
    assert '"train_grpo"' in answer


@commands("kedro study", outside="--env=gemma2b")
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


@pytest.mark.pipeline
@pytest.mark.cli
@commands("kedro run --pipeline=export")
def test_export(command, toy_study):
    """On the study's only seed; what an export holds is seen in pipelines/test_export.py."""
    words = shlex.split(f"{command},data_root=data".replace("777", "42"))
    code, text = toy_study.command(*words, timeout=600, KEDRO_ENV="test")
    assert code == 0, text


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
