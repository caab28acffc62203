"""What happens around a run: one MLflow run a stage, the record on disk, ends that are told apart."""

import json
import logging
import signal
import time
from types import SimpleNamespace

import pytest

from gemma_alignment.errors import UserError
from gemma_alignment.hooks.options import Options
from gemma_alignment.hooks.outputs import check_unchanged
from gemma_alignment.hooks.provenance import git_commit
from gemma_alignment.hooks.store import PARENT
from gemma_alignment.hooks.tracking import STUDY, Tracking

pytestmark = pytest.mark.pipeline


def prepared(project):
    """The project with data, SFT and reward model made."""
    project.run("data_processing", "sft", "reward_model")
    return project


def test_a_session_of_one_stage_is_one_run_with_its_name_tags_and_parameters(project):
    prepared(project)
    before = len(project.runs())
    project.run("grpo", seed=123)
    (run,) = project.runs()[before:]
    assert (run.info.run_name, run.info.status) == ("grpo-seed123", "FINISHED")
    tags = run.data.tags
    assert {key: tags[key] for key in ("method", "seed", "stage", "study", "variant", "overwrite", "data_root")} == {
        "method": "grpo", "seed": "123", "stage": "grpo", "study": "none", "variant": "none", "overwrite": "false",
        "data_root": "data/test",
    }  # fmt: skip
    assert tags["mlflow.source.git.commit"] == "unknown"  # the copy is no repository
    assert run.data.params["grpo.group_size"] == "6"
    assert run.data.params["seed"] == "123"
    assert "variant" not in run.data.params


def test_a_session_of_all_stages_keeps_each_one_in_a_child_run(project):
    project.run()
    runs = {run.info.run_name: run for run in project.runs()}
    session = runs.pop("default-seed42")
    stages = {"data_processing", "sft", "reward_model", "ppo-seed42", "grpo-seed42", "evaluation", "reporting"}
    assert set(runs) == stages
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {session.info.run_id}
    # parameters and curves are where their stage is, though the nodes of the stages interleave
    assert "sft.learning_rate" in runs["sft"].data.params
    assert "sft.learning_rate" not in runs["data_processing"].data.params
    assert "grpo.group_size" not in runs["ppo-seed42"].data.params
    assert set(runs["sft"].data.metrics) == {"sft/loss", "sft/merge_max_logit_diff", "budget/seconds"}
    assert set(runs["data_processing"].data.metrics) == {"data/rows_kept"}
    assert "reward/score_mean" not in session.data.metrics
    for name in stages:
        assert project.record(name.replace("-seed", "/seed=")).mlflow_run_id == runs[name].info.run_id


def test_the_curve_in_mlflow_is_the_history_on_disk(project):
    prepared(project)
    project.run("ppo")
    run = project.runs()[-1]
    stored = project.client.get_metric_history(run.info.run_id, "reward/score_mean")
    file = project.data / "07_model_output/ppo/seed=42/history.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [(point.step, point.value) for point in stored] == [
        (row["iteration"], row["reward/score_mean"]) for row in rows
    ]
    assert len(rows) == 4
    timing = [json.loads(line) for line in file.with_name("timing.jsonl").read_text().splitlines()]
    assert [point.timestamp for point in stored] == [row["timestamp"] for row in timing]


def test_the_report_and_its_numbers_are_kept_with_the_run(project):
    project.run()
    session = next(run for run in project.runs() if run.info.run_name == "default-seed42")
    assert session.data.metrics == {"evaluation/win_rate": 0.5}
    files = {file.path for file in project.client.list_artifacts(session.info.run_id)}
    assert files == {"comparison.json", "report.html"}
    assert (project.root / "mlruns").is_dir()


def test_a_later_stage_reads_what_the_same_session_wrote(project):
    project.run()
    judged = (project.data / "07_model_output/judgements.jsonl").read_text().splitlines()
    assert [json.loads(line)["run"] for line in judged] == ["grpo/seed=42/", "ppo/seed=42/", "sft/"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"grpo__gruop_size": 4}, r"unknown parameter grpo\.gruop_size; did you mean grpo\.group_size\?"),
        ({"sed": 1}, r"unknown parameter sed; did you mean seed\?"),
        ({"grpo": 4}, r"grpo is a section, not a value"),
        ({"sft__learning_rate": "fast"}, r"sft\.learning_rate: expected float, got 'fast'"),
        ({"seed": -1}, r"^seed must be from 0"),
        ({"seed": 1.5}, r"^seed: expected int, got 1.5"),
        ({"variant": "a/b"}, r"variant becomes part of a folder's name"),
        ({"protocol__method_b": "gppo"}, r"protocol: unknown method gppo; did you mean ppo\?"),
        ({"evaluation__methods": ["gpro@k4"]}, r"^evaluation: methods: unknown method gpro@k4; did you mean grpo"),
    ],
)
def test_a_wrong_parameter_is_named_before_any_run_opens(project, params, message):
    with pytest.raises(UserError, match=message):
        project.run("data_processing", **params)
    assert project.runs() == []


def test_missing_inputs_are_named_with_the_commands_that_make_them_in_order(project):
    with pytest.raises(UserError) as error:
        project.run("grpo", seed=7)
    text = str(error.value)
    for name in ("prompts_eval", "prompts_train", "rm_model_bt", "sft_merged_model"):
        assert f"  {name}  (data/test/" in text
    assert "grpo.run_log" not in text
    commands = [line.strip() for line in text.splitlines() if "kedro run" in line]
    assert commands == [
        f"kedro run --pipeline={name} --env=test --params seed=7" for name in ("data_processing", "sft", "reward_model")
    ]
    assert project.runs() == []


def test_an_evaluation_without_answers_names_the_arms_too(project):
    prepared(project)
    (project.data / "07_model_output/sft/responses.jsonl").unlink()
    with pytest.raises(UserError) as error:
        project.run("evaluation")
    commands = [line.split("=")[1].split()[0] for line in str(error.value).splitlines() if "kedro run" in line]
    assert commands == ["reward_model", "ppo", "grpo"]


def test_a_finished_arm_of_another_configuration_is_kept(project):
    prepared(project)
    project.run("grpo")
    history = project.data / "07_model_output/grpo/seed=42/history.jsonl"
    before = history.read_bytes()
    with pytest.raises(UserError) as error:
        project.run("grpo", grpo__group_size=3)
    text = str(error.value)
    assert "grpo.group_size: 6 → 3" in text
    assert "--params variant=NAME" in text and "--params overwrite=true" in text
    assert history.read_bytes() == before
    assert project.states()["grpo-seed42"] == "FINISHED"

    project.run("grpo", grpo__group_size=3, variant="k3")
    assert history.read_bytes() == before
    assert project.record("grpo@k3/seed=42").parameters["grpo"]["group_size"] == 3
    assert (project.data / "06_models/grpo@k3/seed=42/policy/adapter_config.json").exists()
    assert project.states()["grpo@k3-seed42"] == "FINISHED"

    project.run("grpo", grpo__group_size=3, overwrite=True)
    assert project.record("grpo/seed=42").parameters["grpo"]["group_size"] == 3


def test_equal_configuration_runs_again_to_the_same_bytes(project):
    prepared(project)
    project.run("ppo")
    history = project.data / "07_model_output/ppo/seed=42/history.jsonl"
    first = history.read_bytes()
    project.run("ppo", overwrite=True)
    assert history.read_bytes() == first
    assert [run.info.status for run in project.runs()[-2:]] == ["FINISHED", "FINISHED"]


def test_an_arm_is_refused_when_what_it_was_made_from_has_changed(project):
    prepared(project)
    project.run("ppo")
    model = project.data / "06_models/sft_merged_model/adapter_config.json"
    model.write_text('{"value": 1}')
    with pytest.raises(UserError, match="is not what the stage sft left there"):  # first: overwriting is no cure
        project.run("ppo")
    (project.data / "07_model_output/sft/run.json").unlink()
    with pytest.raises(UserError, match=r"sft \(input\): [0-9a-f]{12} → [0-9a-f]{12}"):
        project.run("ppo")


def test_a_stage_before_the_arms_offers_no_variant(project):
    prepared(project)
    with pytest.raises(UserError) as error:
        project.run("sft", sft__learning_rate=0.5)
    assert "overwrite=true" in str(error.value)
    assert "variant" not in str(error.value)


def test_the_seed_of_an_arm_does_not_touch_the_preparation(project):
    prepared(project)
    record = project.record("sft")
    project.run("sft", seed=777)
    assert project.record("sft").fingerprints == record.fingerprints


def test_a_part_of_a_stage_is_not_called_finished(project):
    from kedro.framework.session import KedroSession
    from kedro.framework.startup import bootstrap_project

    project.run("data_processing")
    bootstrap_project(project.root)
    with KedroSession.create(project.root, env="test", save_on_close=False) as session:
        session.run(pipeline_names=["sft"], to_nodes=["train_sft"])
    assert project.record("sft").status == "partial"
    with KedroSession.create(project.root, env="test", save_on_close=False) as session:
        session.run(pipeline_names=["sft"], from_nodes=["merge_sft"])
    assert project.record("sft").status == "finished"
    rows = (project.data / "07_model_output/sft/history.jsonl").read_text().splitlines()
    assert [json.loads(row)["iteration"] for row in rows] == [0, 1, 2]


def test_a_failing_arm_is_failed_and_what_it_wrote_is_kept(project, monkeypatch, caplog):
    prepared(project)
    monkeypatch.setenv("SMALL_FAIL", "grpo:42")
    with pytest.raises(ArithmeticError):
        project.run("ppo", "grpo")
    assert "--from-nodes" not in caplog.text and "Node train_grpo failed." in caplog.text
    states = project.states()
    assert states["grpo-seed42"] == "FAILED"
    assert states["ppo+grpo-seed42"] == "FAILED"
    record = project.record("grpo/seed=42")
    assert (record.status, record.error) == ("failed", "ArithmeticError: the loss is not finite")
    run = next(run for run in project.runs() if run.info.run_name == "grpo-seed42")
    points = project.client.get_metric_history(run.info.run_id, "reward/score_mean")
    assert [point.step for point in points] == [0, 1]
    monkeypatch.delenv("SMALL_FAIL")
    project.run("grpo", grpo__group_size=3, overwrite=True)
    assert project.record("grpo/seed=42").status == "finished"


def test_the_runs_of_a_study_stand_under_its_run_and_leave_it_open(project, monkeypatch):
    project.run("data_processing")
    first = project.runs()[0]
    parent = project.client.create_run(first.info.experiment_id, run_name="study-x")
    monkeypatch.setenv(PARENT, parent.info.run_id)
    monkeypatch.setenv(STUDY, "study-x")
    project.run("sft", "reward_model")
    project.run("ppo")
    monkeypatch.setenv("SMALL_FAIL", "grpo:42")
    with pytest.raises(ArithmeticError):
        project.run("grpo", "rloo")
    states = project.states()
    failed = {name: states.pop(name) for name in ("grpo-seed42",)}
    others = {"data_processing": "FINISHED", "study-x": "RUNNING", "sft": "FINISHED", "reward_model": "FINISHED"}
    assert failed == {"grpo-seed42": "FAILED"}
    states.pop("rloo-seed42", None)  # it may have been through before
    assert states == {**others, "ppo-seed42": "FINISHED"}
    children = [run for run in project.runs() if run.info.run_id not in (first.info.run_id, parent.info.run_id)]
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == {parent.info.run_id}
    assert {run.data.tags["study"] for run in children} == {"study-x"}


def test_a_server_that_goes_away_does_not_stop_the_training(project, monkeypatch, caplog):
    prepared(project)

    import mlflow

    down, answer = [], mlflow.MlflowClient.get_run

    def gone(*args, **kwargs):
        down.append(True)
        raise ConnectionError("connection refused")

    monkeypatch.setattr(Tracking, "_activate", gone)
    monkeypatch.setattr(mlflow.MlflowClient, "get_run", lambda *args: gone() if down else answer(*args))
    with caplog.at_level(logging.WARNING, logger="gemma_alignment"):
        project.run("ppo")
    said = [record.getMessage() for record in caplog.records if "MLflow does not answer" in record.getMessage()]
    assert len(said) == 1
    assert project.record("ppo/seed=42").status == "finished"
    assert len((project.data / "07_model_output/ppo/seed=42/history.jsonl").read_text().splitlines()) == 4


@pytest.mark.cli
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_is_killed_and_says_so_without_a_traceback(project, number):
    prepared(project)
    process = project.start("kedro", "run", "--pipelines=ppo,grpo", "--env=test", SMALL_HANG="grpo:42")
    history = project.data / "07_model_output/grpo/seed=42/history.jsonl"
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and not (history.exists() and history.read_text().count("\n") == 2):
        time.sleep(0.1)
    process.send_signal(number)
    output, _ = process.communicate(timeout=180)
    assert process.returncode == 128 + number
    assert f"The run was stopped by {number.name}" in output
    assert "Traceback" not in output
    states = project.states()
    assert states["grpo-seed42"] == "KILLED"
    assert states["ppo+grpo-seed42"] == "KILLED"
    assert project.record("grpo/seed=42").status == "killed"


def test_the_commit_is_none_outside_git(tmp_path):
    assert git_commit(tmp_path) is None


def test_a_relative_store_lies_at_the_root_from_any_folder(project, monkeypatch):
    (project.root / "src" / "deep").mkdir()
    monkeypatch.chdir(project.root / "src" / "deep")
    project.run("data_processing")
    assert project.states() == {"data_processing": "FINISHED"}
    assert not (project.root / "src/deep/mlflow.db").exists()


def test_a_command_that_an_error_names_means_the_same_files():
    given = {"data_root": "elsewhere", "seed": 3, "resume": True, "sft": {"steps": 2}}
    assert Options.of("test", given).typed() == " --env=test --params data_root=elsewhere,seed=3"
    assert Options.of("test", given).typed("overwrite=true").endswith("overwrite=true,data_root=elsewhere,seed=3")
    assert Options.of("local", {}).typed("overwrite=true") == " --params overwrite=true"
    assert Options.of(None, {}).typed() == ""


def test_a_changed_input_is_refused_with_the_command_that_makes_it_anew_in_its_own_folder(tmp_path):
    (tmp_path / "model").write_text("changed")
    makers = {"sft": SimpleNamespace(outputs={"model": "0"})}
    catalog = {"model": SimpleNamespace(_filepath=tmp_path / "model")}
    options = Options.of("test", {"data_root": "elsewhere"})
    with pytest.raises(UserError, match=r"--pipeline=sft --env=test --params overwrite=true,data_root=elsewhere$"):
        check_unchanged(["model"], makers, catalog, options)
