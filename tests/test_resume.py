"""What happens around a run that is interrupted and goes on: refusals, its record, its MLflow run."""

import json
import os
import signal
import socket
import time
from collections import Counter
from pathlib import Path

import pytest

from gemma_alignment.datasets.checkpoint_store import saved
from gemma_alignment.errors import UserError
from gemma_alignment.hooks.abandoned import PROCESS, tags_of

pytestmark = pytest.mark.pipeline
ARM = "grpo/seed=42"


@pytest.fixture
def prepared(project, shared_start):
    """The project with data, SFT and reward model made."""
    return shared_start(project, "prepared", lambda: project.run("data_processing", "sft", "reward_model"))


@pytest.fixture
def interrupted(prepared, shared_start, monkeypatch):
    """The same with an arm that failed in iteration 2 of 3."""

    def make():
        with monkeypatch.context() as patch, pytest.raises(ArithmeticError):
            patch.setenv("SMALL_FAIL", "grpo:42")
            prepared.run("grpo")

    return shared_start(prepared, "interrupted", make)


def history(project, folder=ARM):
    return (project.data / "07_model_output" / folder / "history.jsonl").read_bytes()


def stored(project, run_id, key):
    return [(point.step, point.value) for point in project.client.get_metric_history(run_id, key)]


def test_it_goes_on_in_the_same_mlflow_run_with_every_point_once(interrupted):
    before = interrupted.record(ARM)
    count = len(interrupted.runs())
    interrupted.run("grpo", resume=True)
    record = interrupted.record(ARM)
    assert (record.status, record.mlflow_run_id) == ("finished", before.mlflow_run_id)
    assert len(interrupted.runs()) == count
    run = interrupted.client.get_run(record.mlflow_run_id)
    assert (run.info.status, run.data.tags["resume"]) == ("FINISHED", "true")
    assert "resume" not in run.data.params
    rows = [json.loads(line) for line in history(interrupted).splitlines()]
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    for key in ("reward/score_mean", "policy/kl_to_reference"):
        assert stored(interrupted, record.mlflow_run_id, key) == [(row["iteration"], row[key]) for row in rows]

    interrupted.run("grpo", seed=42, variant="whole")
    assert history(interrupted) == history(interrupted, "grpo@whole/seed=42")


def test_points_that_an_iteration_sent_before_it_was_lost_are_not_sent_again(interrupted):
    """The last checkpoint is gone, so iteration 1 is done twice, the second time with another timestamp."""
    folder = interrupted.data / "07_model_output" / ARM / "checkpoints" / "iteration=000001"
    (folder / "state.json").write_text("{}")
    run_id = interrupted.record(ARM).mlflow_run_id
    first = interrupted.client.get_metric_history(run_id, "reward/score_mean")
    interrupted.run("grpo", resume=True)
    points = interrupted.client.get_metric_history(run_id, "reward/score_mean")
    assert Counter(point.step for point in points) == {0: 1, 1: 1, 2: 1, 3: 1}
    assert [point.timestamp for point in points[:2]] == [point.timestamp for point in first]


def test_a_digit_that_changed_in_the_history_is_noticed_and_nothing_goes_on(interrupted):
    path = interrupted.data / "07_model_output" / ARM / "history.jsonl"
    content, record, count = path.read_bytes(), interrupted.record(ARM), len(interrupted.runs())
    number = next(i for i, byte in enumerate(content) if chr(byte) == "." and chr(content[i + 1]).isdigit()) + 1
    flipped = bytearray(content)
    flipped[number] ^= 1
    path.write_bytes(flipped)
    assert [json.loads(line)["iteration"] for line in flipped.splitlines()] == [0, 1]
    with pytest.raises(UserError, match=r"history\.jsonl is not what it was when the checkpoint was taken.*overwrite"):
        interrupted.run("grpo", resume=True)
    assert path.read_bytes() == flipped
    assert saved(path.parent / "checkpoints") == [0, 1]
    assert interrupted.record(ARM).mlflow_run_id == record.mlflow_run_id
    assert len(interrupted.runs()) == count

    path.write_bytes(content)
    interrupted.run("grpo", resume=True)
    assert interrupted.record(ARM).status == "finished"


def test_an_evaluation_that_was_shot_before_mlflow_knew_of_its_end_has_it_when_it_is_made_again(prepared):
    """Its record says finished, so it is not gone on with; MLflow still says that it runs."""
    prepared.run("ppo", "grpo", "evaluation")
    run_id = prepared.record("evaluation").mlflow_run_id
    experiment = prepared.client.get_run(run_id).info.experiment_id
    elsewhere = {"stage": "evaluation", **tags_of(prepared.data)}
    other = prepared.client.create_run(experiment, tags=elsewhere).info.run_id
    prepared.client.set_tag(other, PROCESS, f"{socket.gethostname()} {os.getpid()} another/1")
    prepared.client.update_run(run_id, status="RUNNING")
    prepared.client.set_tag(run_id, PROCESS, f"{socket.gethostname()} {os.getpid()} another/1")
    prepared.run("evaluation", resume=True)
    assert prepared.client.get_run(run_id).info.status == "FINISHED"
    assert prepared.record("evaluation").mlflow_run_id != run_id
    assert prepared.client.get_run(other).info.status == "RUNNING"  # it is another folder's


@pytest.mark.parametrize("process", [lambda: tags_of(Path())[PROCESS], lambda: "another-machine 1 x/1", lambda: ""])
def test_a_run_whose_process_lives_or_cannot_be_looked_at_is_left(prepared, process):
    prepared.run("grpo")
    run_id = prepared.record(ARM).mlflow_run_id
    prepared.client.update_run(run_id, status="RUNNING")
    prepared.client.set_tag(run_id, PROCESS, process())
    prepared.run("grpo", overwrite=True)
    assert prepared.client.get_run(run_id).info.status == "RUNNING"


def test_a_run_that_the_store_has_lost_is_filled_from_the_files(interrupted):
    before = interrupted.record(ARM).mlflow_run_id
    interrupted.client.delete_run(before)
    interrupted.run("grpo", resume=True)
    record = interrupted.record(ARM)
    assert record.mlflow_run_id != before
    assert [step for step, _ in stored(interrupted, record.mlflow_run_id, "reward/score_mean")] == [0, 1, 2, 3]


def test_starting_anew_over_a_checkpoint_is_refused_and_both_ways_out_work(interrupted):
    before, runs = history(interrupted), len(interrupted.runs())
    with pytest.raises(UserError) as error:
        interrupted.run("grpo")
    text = str(error.value)
    assert "holds an interrupted run of grpo, with a checkpoint of iteration 1, that is not finished" in text
    assert "--params resume=true      and the same parameters" in text and "--params overwrite=true" in text
    assert (history(interrupted), len(interrupted.runs())) == (before, runs)
    interrupted.run("grpo", overwrite=True)
    assert interrupted.record(ARM).status == "finished"
    assert len(interrupted.runs()) == runs + 1


@pytest.mark.parametrize("resume", [True, False])
def test_another_configuration_does_not_go_on_and_the_difference_is_shown(interrupted, resume):
    before = history(interrupted)
    with pytest.raises(UserError) as error:
        interrupted.run("grpo", resume=resume, grpo__group_size=3)
    text = str(error.value)
    assert "grpo.group_size: 6 → 3" in text
    assert "--params resume=true      and its own parameters" in text and "--params variant=NAME" in text
    assert history(interrupted) == before
    assert interrupted.record(ARM).status == "failed"


def test_a_model_that_was_made_anew_is_a_difference_too(interrupted):
    interrupted.run("reward_model", overwrite=True, prepare_seed=7)
    with pytest.raises(UserError, match=r"reward_model \(input\): [0-9a-f]{12} → [0-9a-f]{12}"):
        interrupted.run("grpo", resume=True)


def test_checkpoints_whose_record_is_lost_are_neither_used_nor_removed(interrupted):
    folder = interrupted.data / "07_model_output" / ARM
    (folder / "run.json").write_text("{")
    for resume in (True, False):
        with pytest.raises(UserError, match=r"holds checkpoints, and no readable run\.json"):
            interrupted.run("grpo", resume=resume)
    assert saved(folder / "checkpoints") == [0, 1]


def test_resume_and_overwrite_exclude_each_other(project):
    with pytest.raises(UserError, match="resume=true goes on with a run and overwrite=true begins anew"):
        project.run("data_processing", resume=True, overwrite=True)


def test_what_has_nothing_to_go_on_from_begins(prepared):
    project = prepared
    project.run("reward_model", resume=True)
    project.run("grpo", resume=True)
    assert project.record(ARM).status == "finished"
    before = history(project)
    project.run("grpo", resume=True)  # finished: nothing is left to train
    assert history(project) == before
    assert len({run.info.run_id for run in project.runs() if run.info.run_name == "grpo-seed42"}) == 1


def test_the_other_nodes_of_a_stage_are_not_in_the_way(interrupted):
    """A later node alone loses no checkpoint, so it needs no permission."""
    from kedro.framework.session import KedroSession

    interrupted.run("grpo", resume=True)
    folder = interrupted.data / "07_model_output" / ARM
    record = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**record, "status": "killed"}))
    with KedroSession.create(interrupted.root, env="test", save_on_close=False) as session:
        session.run(pipeline_names=["grpo"], from_nodes=["ask_grpo"])
    assert interrupted.record(ARM).status == "finished"
    assert saved(folder / "checkpoints") == [2, 3]


@pytest.mark.cli
def test_a_run_that_is_shot_goes_on_from_the_command_line(prepared):
    project = prepared
    process = project.start("kedro", "run", "--pipeline=grpo", "--env=test", SMALL_HANG="grpo:42")
    folder = project.data / "07_model_output" / ARM
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and saved(folder / "checkpoints") != [0, 1]:
        time.sleep(0.1)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert project.record(ARM).status == "running"
    code, output = project.command("kedro", "run", "--pipeline=grpo", "--env=test", "--params=resume=true")
    assert code == 0, output
    record = project.record(ARM)
    assert record.status == "finished"
    assert stored(project, record.mlflow_run_id, "reward/score_mean") == [(i, 42 + i / 8) for i in range(4)]
    assert project.states()["grpo-seed42"] == "FINISHED"


def test_preparation_goes_on_too_in_its_own_mlflow_run(project, monkeypatch):
    project.run("data_processing")
    with monkeypatch.context() as patch, pytest.raises(ArithmeticError):
        patch.setenv("SMALL_FAIL", "sft:42")
        project.run("sft", "reward_model")
    before = project.record("sft")
    assert (before.status, saved(project.data / "07_model_output/sft/checkpoints")) == ("failed", [0, 1])
    with pytest.raises(UserError, match="holds an interrupted run of sft, with a checkpoint of iteration 1"):
        project.run("sft")
    with pytest.raises(UserError, match=r"sft.learning_rate: .* → 5"):
        project.run("sft", resume=True, sft__learning_rate=5.0)
    project.run("sft", "reward_model", resume=True)
    record = project.record("sft")
    assert (record.status, record.mlflow_run_id) == ("finished", before.mlflow_run_id)
    assert [step for step, _ in stored(project, record.mlflow_run_id, "sft/loss")] == [0, 1]
    assert stored(project, record.mlflow_run_id, "sft/merge_max_logit_diff") == [(2, 0.25)]
    assert project.record("reward_model").status == "finished"


def test_a_source_file_that_changed_is_a_difference(project):
    """The stage reads it before anything else has a digest."""
    file = project.root / "mine.jsonl"
    file.write_text("{}\n")
    given = {"preferences__source": "jsonl", "preferences__path": str(file)}
    project.run("data_processing", **given)
    file.write_text("{}\n{}\n")
    with pytest.raises(UserError, match=r"source \(input\): [0-9a-f]{12} → [0-9a-f]{12}"):
        project.run("data_processing", **given)
