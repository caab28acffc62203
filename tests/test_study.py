"""The matrix, and the engine that runs it: what happens when runs fail, vanish or are stopped."""

import json
import os
import signal
import time

import pytest

from gemma_alignment.dotted import dotted, nested
from gemma_alignment.errors import UserError
from gemma_alignment.study.plan import Plan, Run, parse_names, parse_seeds
from gemma_alignment.study.progress import Progress, clock, last_rows


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("42,123,777", (42, 123, 777)), ("1-4,42", (1, 2, 3, 4, 42)), ("3, 1-3,", (3, 1, 2)), ("7-7", (7,))],
)
def test_seeds_are_lists_and_ranges(text, seeds):
    assert parse_seeds(text) == seeds


@pytest.mark.parametrize("text", ["", "a", "1-", "5-2", "-3", "1.5", "99999999999", "1-4294967296", "1-100000000"])
def test_other_seeds_are_refused(text):
    with pytest.raises(UserError, match="--seeds"):
        parse_seeds(text)


def test_the_matrix_is_methods_times_seeds_pair_by_pair():
    plan = Plan(("ppo", "grpo"), (42, 123), {"variant": "v", "grpo.group_size": 8}, "test")
    assert [run.label for run in plan.arms] == ["ppo@v-seed42", "grpo@v-seed42", "ppo@v-seed123", "grpo@v-seed123"]
    assert plan.arms[1].command() == (
        "kedro run --pipelines=grpo --env=test --params seed=42,variant=v,grpo.group_size=8"
    )
    assert plan.preparation.label == "data_processing, sft, reward_model"
    assert plan.closing.pipelines == ("evaluation", "reporting")


def test_an_unknown_method_is_named_with_the_nearest():
    with pytest.raises(UserError, match="unknown method gpro; did you mean grpo"):
        Plan(("gpro",), (1,), {})


def test_a_study_without_a_method_is_refused():
    with pytest.raises(UserError, match="--methods names no method: there are ppo, grpo"):
        Plan(parse_names(" ,"), (1,), {})


def test_a_seed_among_the_parameters_of_a_study_is_refused():
    with pytest.raises(UserError, match="use --seeds"):
        Plan(("grpo",), (1,), {"seed": 3})
    with pytest.raises(UserError, match="use --resume"):
        Plan(("grpo",), (1,), {"resume": True})


@pytest.mark.parametrize("value", [[1, 2], "a,b"])
def test_what_a_command_line_cannot_carry_is_refused(value):
    with pytest.raises(UserError, match="--params cannot carry"):
        Run(("sft",), {"sft.x": value}).arguments()


def test_values_are_written_as_yaml_reads_them():
    run = Run(("sft",), {"a": True, "b": None, "c": 1e-06, "d": "x"})
    assert run.arguments()[-1] == "a=true,b=null,c=1e-06,d=x"


def test_dotted_and_nested_are_inverse():
    tree = {"a": {"b": {"c": 1}, "d": 2}, "e": 3}
    assert dotted(tree) == {"a.b.c": 1, "a.d": 2, "e": 3}
    assert nested(dotted(tree)) == tree
    assert parse_names("ppo, grpo,ppo") == ("ppo", "grpo")


def test_progress_is_the_last_whole_line(tmp_path):
    (tmp_path / "history.jsonl").write_text(
        '{"iteration":1}\n{"iteration":2,"reward/score_mean":0.5,"policy/kl_to_reference":0.25}\n{"iter'
    )
    (tmp_path / "timing.jsonl").write_text(
        '{"iteration":0,"timestamp":1000}\n{"iteration":1,"timestamp":4500}\n'
        '{"iteration":2,"rollout/tokens_per_second":99.6,"timestamp":5000}\n'
    )
    progress = Progress.read(tmp_path, 8)
    assert progress.text() == "iteration 2/8  reward 0.500  KL 0.250  100 tokens/s"
    assert progress.seconds_left == 6 * (5 - 1) / 2
    assert Progress.read(tmp_path, 8, since=4.0).seconds_left == 6 * 0.5  # an earlier attempt had another pace
    assert Progress.read(tmp_path, 8, since=4.7).seconds_left is None
    assert Progress.read(tmp_path, 8, since=6.0) is None  # lines of an earlier run
    assert last_rows(tmp_path / "nothing") == []
    assert Progress.read(tmp_path, None) is None  # nobody says how many there will be
    assert (clock(65), clock(3725)) == ("1:05", "1:02:05")


def test_the_progress_of_a_preparation_says_itself_how_far_it_goes(tmp_path):
    lines = [{"iteration": i, "timestamp": 200 * i, "planned": 284} for i in (5, 10, 15)]
    (tmp_path / "timing.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "history.jsonl").write_text('{"iteration":15,"sft/loss":1.5}\n')
    progress = Progress.read(tmp_path, None)
    assert progress.text() == "iteration 15/284  loss 1.500"
    assert progress.seconds_left == pytest.approx((284 - 15) * 0.2)  # a line every five steps
    with (tmp_path / "timing.jsonl").open("a") as file:
        file.write('{"iteration":285,"timestamp":60000}\n')
    (tmp_path / "history.jsonl").write_text('{"iteration":285,"sft/perplexity_after":2.0}\n')
    after = Progress.read(tmp_path, None)
    assert (after.text(), after.seconds_left) == ("iteration 284/284", 0.0)


def test_the_last_rows_of_a_long_file_are_whole(tmp_path):
    rows = [{"iteration": i, "text": "x" * 1000} for i in range(200)]
    (tmp_path / "a").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = last_rows(tmp_path / "a")
    assert found == rows[-len(found) :] and 0 < len(found) < 200


pipeline = pytest.mark.pipeline
cli = pytest.mark.cli


def study(project, *words, **environment):
    return project.command("kedro", "study", *words, "--env=test", **environment)


@cli
@pipeline
def test_a_study_runs_everything_once_under_one_run(project):
    code, output = study(project, "--seeds=1", "--workers=2")
    assert code == 0, output
    states = project.states()
    (name,) = [name for name in states if name.startswith("study-")]
    stages = {"data_processing", "sft", "reward_model", "evaluation", "reporting"}
    assert set(states) == {name, "ppo-seed1", "grpo-seed1"} | stages
    assert set(states.values()) == {"FINISHED"}
    runs = {run.info.run_name: run for run in project.runs()}
    parent = runs.pop(name)
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert {run.data.tags["study"] for run in runs.values()} == {name}
    assert parent.data.tags["seeds"] == "1"
    assert parent.data.metrics["evaluation/win_rate"] == 0.5
    artifacts = {file.path for file in project.client.list_artifacts(parent.info.run_id)}
    assert artifacts == {"comparison.json", "report.html"}
    last = output.strip().splitlines()[-4:]
    assert "finished: 4 processes done, 0 failed" in last[0]
    assert last[1].split() == ["Report:", str(project.data / "08_reporting" / "report.html")]
    assert "mlflow ui --backend-store-uri sqlite:///" in last[2]
    assert last[3].endswith("python -m gemma_alignment chat --method grpo --seed 1 --compare --env=test")
    assert (project.data / "07_model_output/ppo/seed=1/run.log").exists()

    code, output = project.command("kedro", "study", "status", "--env=test", "--seeds=1,9")
    assert code == 0
    lines = {line.split()[0]: line.split()[1] for line in output.strip().splitlines()}
    assert lines["ppo-seed1"] == "finished" and lines["grpo-seed9"] == "left"
    assert output.strip().splitlines()[-1] == "7 finished, 2 left"


@cli
@pipeline
def test_runs_that_fail_or_are_shot_are_shown_and_the_others_go_on(project):
    project.run("data_processing", "sft", "reward_model")
    made = project.record("reward_model").created
    process = project.start(
        "kedro", "study", "--env=test", "--seeds=1-2", "--workers=4", SMALL_FAIL="grpo:1", SMALL_HANG="ppo:2"
    )  # fmt: skip
    os.kill(wait_for_two_lines(project, "ppo/seed=2").pid, signal.SIGKILL)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 1, output
    assert project.record("reward_model").created == made  # what is prepared is not prepared again
    states = project.states()
    (name,) = [name for name in states if name.startswith("study-")]
    assert [states.pop(one) for one in ("grpo-seed1", "ppo-seed2", name)] == ["FAILED"] * 3
    assert set(states.values()) == {"FINISHED"}
    assert {"ppo-seed1", "grpo-seed2", "reporting"} <= set(states)
    assert "grpo-seed1 failed  ArithmeticError: the loss is not finite" in output
    assert "3 processes done, 2 failed" in output
    shot = project.record("ppo/seed=2")
    assert (shot.status, "status -9" in shot.error) == ("failed", True)
    points = project.client.get_metric_history(shot.mlflow_run_id, "reward/score_mean")
    assert [point.step for point in points] == [0, 1]


@cli
@pipeline
def test_a_stopped_study_stops_its_runs(project):
    project.run("data_processing", "sft", "reward_model")
    process = project.start("kedro", "study", "--env=test", "--seeds=1", "--workers=2", SMALL_HANG="grpo:1")
    record = wait_for_two_lines(project, "grpo/seed=1")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGINT, output
    assert "Traceback" not in output
    states = project.states()
    (name,) = [name for name in states if name.startswith("study-")]
    assert states[name] == "KILLED"
    assert states["grpo-seed1"] == "KILLED"
    assert "RUNNING" not in states.values()
    assert project.record("grpo/seed=1").status == "killed"
    with pytest.raises(ProcessLookupError):
        os.kill(record.pid, 0)


def wait_for_two_lines(project, folder):
    history = project.data / "07_model_output" / folder / "history.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if history.exists() and history.read_text().count("\n") == 2:
            return project.record(folder)
        time.sleep(0.1)
    raise AssertionError("the run never came that far")


@cli
@pipeline
def test_what_would_be_refused_later_is_refused_before_anything_runs(project):
    project.run("data_processing", "sft", "reward_model")
    project.run("grpo", seed=2)
    before = len(project.runs())
    code, output = study(project, "--seeds=1-2", "--params", "grpo.group_size=3")
    assert code == 1
    assert "grpo/seed=2 holds a finished run" in output and "grpo.group_size: 6 → 3" in output
    assert "Traceback" not in output
    assert len(project.runs()) == before
    assert not (project.data / "07_model_output/ppo").exists()


@cli
def test_a_dry_run_shows_the_commands_and_touches_nothing(project):
    (project.root / "mlflow.db").unlink()
    code, output = study(project, "--dry-run", "--quick", "--params", "sft.epochs=2")
    assert code == 0
    lines = output.strip().splitlines()
    assert [line.split("  ")[0] for line in lines] == [
        "data_processing, sft, reward_model",
        "ppo-seed42",
        "grpo-seed42",
        "evaluation, reporting",
    ]
    assert "seed=42,data_root=data/quick," in lines[1] and lines[1].endswith(",sft.epochs=2")
    assert not (project.root / "mlflow.db").exists()
    assert not project.data.exists()


@cli
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods=gpro"], "unknown method gpro; did you mean grpo?"),
        (["--seeds=5-2"], "--seeds 5-2: expected numbers and ranges"),
        (["--params", "grpo.gruop_size=4"], "unknown parameter grpo.gruop_size; did you mean grpo.group_size?"),
    ],
)
def test_options_that_mean_nothing_are_one_message(project, words, message):
    code, output = study(project, "--dry-run", *words)
    assert code == 1
    assert output.strip() == f"Error: {message}" or message in output.strip().splitlines()[0]
    assert "Traceback" not in output


def test_the_quick_study_fits_its_configuration():
    from pathlib import Path

    from kedro.config import OmegaConfigLoader

    from gemma_alignment.hooks.checks import check_parameters
    from gemma_alignment.settings import CONFIG_LOADER_ARGS

    root = Path(__file__).parents[1]
    configured = OmegaConfigLoader(str(root / "conf"), env="base", **CONFIG_LOADER_ARGS)["parameters"]
    given = nested(configured["study"]["quick"])
    loader = OmegaConfigLoader(str(root / "conf"), env="base", runtime_params=given, **CONFIG_LOADER_ARGS)
    check_parameters(loader["parameters"], configured, given)
    assert json.loads(json.dumps(given))["data_root"] != configured["data_root"]
