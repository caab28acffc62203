"""The command line's last word: five lines of a finished study, one screen of an error that nobody foresaw."""

import json
from dataclasses import replace

import click
import pytest
from click.testing import CliRunner

from gemma_alignment import cli
from gemma_alignment.errors import NothingToDo, UserError
from gemma_alignment.study.plan import Plan, Variant
from gemma_alignment.study.summary import summary

PLAN = Plan(methods=("ppo", "grpo"), seeds=(42, 777), params={"data_root": "data/mine"}, env="test")
STORE = "sqlite:////x/mlflow.db"


def lines(tmp_path, status="FINISHED", plan=PLAN, **counts):
    counts = {"done": 6, "failed": 0, "closed": 1, **counts}
    return summary("study-1", status, counts, 3725.0, plan, tmp_path, STORE)


def test_a_finished_study_ends_in_five_lines(tmp_path):
    (tmp_path / "08_reporting").mkdir()
    verdict = {"word": "not resolved", "phrase": "", "primary": True, "n": 2}
    text = json.dumps({"verdict": verdict, "protocol": {"method_a": "ppo", "method_b": "grpo"}})
    (tmp_path / "08_reporting" / "comparison.json").write_text(text)
    assert lines(tmp_path) == [
        "study-1 finished: 6 processes done, 0 failed, 1:02:05",
        "Result:    Whether PPO or GRPO is better is not resolved at this n.",
        f"Report:    {tmp_path / '08_reporting' / 'report.html'}",
        f"MLflow UI: make ui   (or: mlflow ui --backend-store-uri {STORE})",
        "Ask one:   python -m gemma_alignment chat --method grpo --seed 777 --compare --env=test"
        " --params data_root=data/mine",
    ]


def test_the_policy_to_ask_is_one_as_configured_where_there_is_any(tmp_path):
    varied = replace(PLAN, variants=(Variant("grpo", "grpo.group_size", 4),))
    assert varied.arms[-1].stages[0].variant == "group_size-4"
    assert lines(tmp_path, plan=varied)[-1] == lines(tmp_path)[-1]
    given = replace(PLAN, params={"variant": "mine"})
    assert lines(tmp_path, plan=given)[-1].endswith("--seed 777 --compare --env=test --params variant=mine")


def test_a_broken_one_names_the_way_on_and_claims_no_result(tmp_path):
    (first, *rest) = lines(tmp_path, "FAILED", failed=2, closed=0)
    assert first == "study-1 failed: 6 processes done, 2 failed, 1:02:05"
    assert rest[-1] == "What is left: the same command with --resume"
    assert not any(line.startswith(("Result", "Report", "Ask")) for line in rest)


@pytest.fixture
def failing(tmp_path, monkeypatch):
    """A command that ends with whatever error it is given."""
    monkeypatch.chdir(tmp_path)

    def run(error):
        def body():
            raise error

        return CliRunner().invoke(click.Command("failing", callback=cli.readable(body)))

    return run


def test_an_error_that_nobody_foresaw_is_one_screen_with_the_cause_first(failing, tmp_path):
    done = failing(ArithmeticError("the loss is not finite\nand more"))
    assert done.exit_code == 1
    first, second, third = done.output.splitlines()
    assert first == "Error: ArithmeticError: the loss is not finite"
    assert second.startswith("  in ")
    assert "test_command_line.py" in second or "cli.py" in second
    assert third == f"  its traceback: {tmp_path / cli.ERRORS}"
    log = (tmp_path / cli.ERRORS).read_text()
    assert "Traceback (most recent call last)" in log
    assert "raise error" in log
    failing(KeyError("another"))
    assert (tmp_path / cli.ERRORS).read_text().startswith(log)


def test_what_is_done_already_is_no_error(failing):
    done = failing(NothingToDo("it is finished"))
    assert (done.exit_code, done.output) == (0, "it is finished\n")


def test_a_relative_path_means_the_folder_of_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = {}
    monkeypatch.setattr(cli.kedro_run, "callback", lambda **given: seen.update(given))
    words = "preferences.path=mine.jsonl,judge.recorded_path=/there.jsonl,judge.labelled_path=null,seed=3"
    done = CliRunner().invoke(cli.run, ["--params", words])
    assert done.exit_code == 0, done.output
    judge = {"recorded_path": "/there.jsonl", "labelled_path": None}
    assert seen["params"] == {"preferences": {"path": f"{tmp_path}/mine.jsonl"}, "judge": judge, "seed": 3}


def test_errors_that_the_user_can_mend_and_wrong_options_leave_no_log(failing, tmp_path):
    assert "Error: do this" in failing(UserError("do this")).output
    assert "no such option" in failing(click.UsageError("no such option")).output
    assert not (tmp_path / cli.ERRORS).exists()


def test_help_shows_an_example_of_each_use():
    text = CliRunner().invoke(cli.cli, ["study", "--help"]).output
    for words in ("kedro study --quick", "--sweep grpo.group_size=2,4,8", "kedro study --resume", "kedro study status"):
        assert words in text
    assert "..." not in text.partition("Commands:")[2], "no help of a command is cut off"
