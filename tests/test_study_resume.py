"""``kedro study --resume``: what is done stays, what was interrupted goes on, under the same MLflow run."""

import dataclasses
import io
import itertools
import shutil
import threading
import time

import pytest
from mlflow import MlflowClient
from rich.console import Console

from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import Record
from gemma_alignment.hooks.store import PARENT
from gemma_alignment.hooks.tracking import STUDY
from gemma_alignment.study.command import planned, start
from gemma_alignment.study.execution import run_study
from gemma_alignment.study.lock import LOCK, alone
from gemma_alignment.study.parent import ParentRun
from gemma_alignment.study.plan import Plan
from gemma_alignment.study.project import Opened

pytestmark = pytest.mark.pipeline


def plan(**params):
    return Plan(("ppo", "grpo"), (1,), params, "test")


@pytest.fixture
def half(project, shared_start, monkeypatch):
    """A study of which the preparation and PPO are done and GRPO failed in iteration 2 of 3."""

    def make():
        project.run("data_processing", "sft", "reward_model")
        (first, *_) = project.runs()
        parent = project.client.create_run(first.info.experiment_id, run_name="study-x", tags={"stage": "study"})
        project.client.set_terminated(parent.info.run_id, "KILLED")
        with monkeypatch.context() as patch:
            patch.setenv(PARENT, parent.info.run_id)
            patch.setenv(STUDY, "study-x")
            patch.setenv("SMALL_FAIL", "grpo:1")
            project.run("ppo", seed=1)
            with pytest.raises(ArithmeticError):
                project.run("grpo", seed=1)

    return shared_start(project, "half", make)


def left(project, wanted):
    return [run.command().removeprefix("kedro run ") for run in Opened.open(project.root, wanted).left(wanted)]


def resumed(project, wanted):
    said = io.StringIO()
    return run_study(project.root, wanted, 1, Console(file=said, width=200), resume=True), said.getvalue()


GRPO = "--pipelines=grpo --env=test --params seed=1"
PPO = "--pipelines=ppo --env=test --params seed=1"
CLOSING = "--pipelines=evaluation,reporting --env=test"


@pytest.mark.cli
def test_it_finishes_what_is_not_finished_and_nothing_else(half):
    made = half.record("ppo/seed=1")
    interrupted = half.record("grpo/seed=1")
    code, said = half.command("kedro", "study", "--seeds=1", "--env=test", "--resume")
    assert code == 0, said
    assert "reused" in said and "study-x finished: 2 processes done, 0 failed" in said
    assert half.record("ppo/seed=1") == made
    record = half.record("grpo/seed=1")
    assert (record.status, record.mlflow_run_id) == ("finished", interrupted.mlflow_run_id)
    points = half.client.get_metric_history(record.mlflow_run_id, "reward/score_mean")
    assert [(point.step, point.value) for point in points] == [(i, 1 + i / 8) for i in range(4)]
    states = half.states()  # which also says that no name is there twice
    assert {name for name in states if name.startswith("study-")} == {"study-x"}
    assert set(states.values()) == {"FINISHED"}
    parents = {run.info.run_name: run.data.tags.get("mlflow.parentRunId") for run in half.runs()}
    assert parents["evaluation"] == parents["grpo-seed1"] == parents["ppo-seed1"] is not None

    report = half.record("reporting")
    assert left(half, plan()) == []
    code, said = resumed(half, plan())
    assert (code, half.record("reporting")) == (0, report), said
    assert "0 processes done, 0 failed" in said
    assert left(half, Plan(("ppo", "grpo"), (1, 2), {}, "test")) == [
        "--pipelines=ppo --env=test --params seed=2", "--pipelines=grpo --env=test --params seed=2", CLOSING,
    ]  # fmt: skip


def test_files_that_exist_do_not_make_a_run_finished(half):
    """GRPO gets PPO's whole folder of files, and is interrupted all the same."""
    output, models = half.data / "07_model_output", half.data / "06_models"
    shutil.copytree(models / "ppo/seed=1", models / "grpo/seed=1")
    for name in ("history.jsonl", "timing.jsonl", "samples.jsonl", "responses.jsonl"):
        shutil.copy(output / "ppo/seed=1" / name, output / "grpo/seed=1" / name)
    assert left(half, plan()) == [f"{GRPO},resume=true", CLOSING]


def test_a_finished_run_that_lacks_an_output_is_not_finished(half):
    (half.data / "07_model_output/ppo/seed=1/responses.jsonl").unlink()
    assert left(half, plan()) == [f"{PPO},resume=true", f"{GRPO},resume=true", CLOSING]


def test_a_run_without_a_checkpoint_begins_in_the_mlflow_run_that_it_opened(half):
    shutil.rmtree(half.data / "07_model_output/grpo/seed=1/checkpoints")
    before, count = half.record("grpo/seed=1").mlflow_run_id, len(half.runs())
    assert left(half, plan()) == [f"{GRPO},resume=true", CLOSING]
    half.run("grpo", seed=1, resume=True)
    record = half.record("grpo/seed=1")
    assert (record.status, record.mlflow_run_id, len(half.runs())) == ("finished", before, count)
    points = half.client.get_metric_history(before, "reward/score_mean")
    assert [(point.step, point.value) for point in points] == [(i, 1 + i / 8) for i in range(4)]


def test_an_evaluation_that_was_cut_off_goes_on_in_its_mlflow_run_if_it_is_the_same(half):
    half.run("grpo", seed=1, resume=True)
    half.run("evaluation", "reporting")
    before, count = half.record("evaluation"), len(half.runs())
    dataclasses.replace(before, status="killed").write(half.data / "07_model_output/evaluation")
    assert left(half, plan()) == [f"{CLOSING} --params resume=true"]
    half.run("evaluation", resume=True)
    assert half.record("evaluation").mlflow_run_id == before.mlflow_run_id
    half.run("evaluation", resume=True)  # finished: made again, as a run of its own
    assert half.record("evaluation").mlflow_run_id != before.mlflow_run_id
    dataclasses.replace(half.record("evaluation"), status="killed").write(half.data / "07_model_output/evaluation")
    half.run("evaluation", resume=True, evaluation__max_prompts=2)
    assert len(half.runs()) == count + 2


def test_what_was_interrupted_before_the_arms_is_done_again_first(half):
    folder = half.data / "07_model_output/reward_model"
    dataclasses.replace(half.record("reward_model"), status="killed").write(folder)
    assert left(half, plan()) == [
        "--pipelines=reward_model --env=test --params resume=true",
        PPO + ",resume=true", GRPO + ",resume=true", CLOSING,
    ]  # fmt: skip


def test_a_stage_that_was_shot_between_its_record_and_its_end_in_mlflow_ends_there_too(half):
    """It is through, so no process of the next attempt has it; those after it have."""
    (half.data / "07_model_output/reward_model/run.json").unlink()
    run_id = half.record("sft").mlflow_run_id
    half.client.update_run(run_id, status="RUNNING")
    half.client.set_tag(run_id, PARENT_TAG, parent_of(half))
    code, said = resumed(half, plan())
    assert code == 0, said
    assert half.client.get_run(run_id).info.status == "FINISHED"


PARENT_TAG = "mlflow.parentRunId"


def parent_of(project):
    return next(run.info.run_id for run in project.runs() if run.info.run_name == "study-x")


def test_a_report_of_other_answers_is_made_again_whatever_the_clock_says(half):
    half.run("grpo", seed=1, resume=True)
    half.run("evaluation", "reporting")
    assert left(half, plan()) == []
    record, folder = half.record("grpo/seed=1"), half.data / "07_model_output/grpo/seed=1"
    dataclasses.replace(record, ended="9999-12-31T00:00:00+00:00").write(folder)
    assert left(half, plan()) == []
    (half.data / "07_model_output/ppo/seed=9").mkdir(parents=True)
    shutil.copy(folder / "responses.jsonl", half.data / "07_model_output/ppo/seed=9")
    assert left(half, plan()) == [CLOSING]


def test_the_numbers_of_a_study_are_logged_once_however_often_they_are_made(half, monkeypatch):
    half.run("grpo", seed=1, resume=True)
    (parent,) = [run.info.run_id for run in half.runs() if run.info.run_name == "study-x"]
    monkeypatch.setenv(PARENT, parent)
    for _ in range(2):
        half.run("evaluation", "reporting")
    points = half.client.get_metric_history(parent, "evaluation/win_rate")
    assert [(point.step, point.value) for point in points] == [(0, 0.5)]


def test_a_study_that_the_store_has_lost_is_a_new_one(half):
    (lost,) = [run.info.run_id for run in half.runs() if run.info.run_name == "study-x"]
    records = Opened.open(half.root, plan()).records(plan().arms)
    experiment = half.runs()[0].info.experiment_id
    assert ParentRun(half.root, experiment, "study-y", {}, half.data, records).run_id == lost
    half.client.delete_run(lost)
    found = ParentRun(half.root, experiment, "study-y", {}, half.data, records)
    assert (found.name, found.run_id == lost) == ("study-y", False)


def test_a_study_that_was_shot_before_it_wrote_anything_is_gone_on_with_or_ended(half):
    experiment = Opened.open(half.root, plan()).experiment_id

    numbers = itertools.count()

    def parent(folder=half.data, resume=False):
        return ParentRun(half.root, experiment, f"study-{next(numbers)}", {}, folder, (), resume).run_id

    def status(run_id):
        return half.client.get_run(run_id).info.status

    elsewhere, shot = parent(half.root), parent()
    under, outlives = (
        half.client.create_run(experiment, tags={"mlflow.parentRunId": shot}).info.run_id for _ in range(2)
    )
    folder = half.data / "07_model_output/grpo/seed=9"
    folder.mkdir(parents=True)
    Record("grpo", 9, "", {}, {}, mlflow_run_id=outlives).write(folder)  # of this process, which lives
    assert parent(resume=True) == shot
    assert [status(one) for one in (shot, under, elsewhere)] == ["RUNNING"] * 3
    following = parent()
    assert following not in (shot, elsewhere)
    assert [status(one) for one in (shot, under, elsewhere, following)] == ["KILLED", "KILLED", "RUNNING", "RUNNING"]
    assert status(outlives) == "RUNNING"


def test_a_study_of_the_same_path_on_another_machine_of_this_name_is_left(half):
    """It shares the server; each of the folders was given an identity by its first study, which a restart keeps."""
    experiment, numbers = Opened.open(half.root, plan()).experiment_id, itertools.count()

    def parent(resume=False):
        with alone(half.data):
            return ParentRun(half.root, experiment, f"study-{next(numbers)}", {}, half.data, (), resume).run_id

    elsewhere = parent()
    assert parent(resume=True) == elsewhere
    (half.data / LOCK).unlink()  # as if this were the other one's folder
    own = parent(resume=True)
    assert own != elsewhere
    following = parent()
    found = [half.client.get_run(one).info.status for one in (elsewhere, own, following)]
    assert found == ["RUNNING", "KILLED", "RUNNING"]


def test_a_study_that_failed_before_anything_began_is_gone_on_with(half):
    """The first process was shot before it had opened a run: no record names the study."""
    experiment = Opened.open(half.root, plan()).experiment_id

    def parent(name, resume):
        return ParentRun(half.root, experiment, name, {}, half.root, (), resume).run_id

    first = parent("study-a", False)
    half.client.set_terminated(first, "FAILED")
    assert parent("study-b", True) == first
    assert half.client.get_run(first).info.status == "RUNNING"
    empty = half.client.create_run(experiment, tags={"mlflow.parentRunId": first})
    half.client.set_terminated(first, "FAILED")
    assert parent("study-c", True) == first, "a run that was opened and shot before its record was written"
    half.client.log_metric(empty.info.run_id, "train/loss", 1.0)
    half.client.set_terminated(first, "FAILED")
    assert parent("study-d", True) != first


def test_a_second_study_of_one_name_is_refused_and_the_first_is_as_it_was(half):
    """Of another folder, as from another machine in the same second."""
    experiment = Opened.open(half.root, plan()).experiment_id
    first = ParentRun(half.root, experiment, "study-y", {}, half.root)
    before = half.states()
    with pytest.raises(UserError, match=rf"A study named study-y is there already, in .*{half.root.name}: start this"):
        ParentRun(half.root, experiment, "study-y", {}, half.data)
    assert half.states() == before
    assert half.client.get_run(first.run_id).info.status == "RUNNING"


@pytest.fixture
def at_once(project, monkeypatch):
    """A study of this folder, just while another one of its name is made elsewhere, so long ago by its own clock."""
    experiment = Opened.open(project.root, plan()).experiment_id
    lost = ParentRun(project.root, experiment, "study-w", {}, project.data).run_id
    monkeypatch.setattr("gemma_alignment.study.parent.GIVES_WAY", 0.3)
    monkeypatch.setattr("gemma_alignment.study.parent.LOOK", 0.05)

    def begun(ago_ms, gives_way):
        def create(client, *words, **more):
            monkeypatch.setattr(MlflowClient, "create_run", real)
            run = real(client, *words, **more)
            tags = {"stage": "study", "study_folder": "elsewhere:/data"}
            when = run.info.start_time - ago_ms
            other = real(client, experiment, start_time=when, run_name="study-y", tags=tags)
            if gives_way:
                threading.Timer(0.1, client.delete_run, [other.info.run_id]).start()
            made.extend([run.info.run_id, other.info.run_id])
            return run

        real, made = MlflowClient.create_run, []
        monkeypatch.setattr(MlflowClient, "create_run", create)
        try:
            return ParentRun(project.root, experiment, "study-y", {}, project.data).run_id == made[0]
        except UserError as error:
            assert "A study named study-y is there already, in elsewhere:/data: start this one again" in str(error)
            left = {run.info.run_id: run.info.status for run in project.client.search_runs([experiment])}
            assert made[0] not in left and left[made[1]] == left[lost] == "RUNNING"
            return False

    return begun


@pytest.mark.parametrize(
    ("ago_ms", "gives_way", "begins"),
    [(5, False, False), (-5, True, True), (-5, False, False)],
    ids=["the earlier one stays", "the later one gives way", "whose clock is ahead has begun"],
)
def test_of_two_studies_of_one_name_that_begin_at_once_one_gives_way(at_once, monkeypatch, ago_ms, gives_way, begins):
    """Each has looked before the other wrote; who gives way leaves all as it was."""
    begun = time.monotonic()
    if ago_ms > 0:
        monkeypatch.setattr("gemma_alignment.study.parent.GIVES_WAY", 20.0)
    assert at_once(ago_ms, gives_way) == begins
    assert time.monotonic() - begun < 15


@pytest.mark.cli
def test_a_dry_run_shows_what_is_left(half):
    words = ("kedro", "study", "--seeds=1", "--env=test", "--resume", "--dry-run")
    code, output = half.command(*words)
    assert code == 0
    assert [line.partition("kedro run ")[2] for line in output.splitlines()] == [f"{GRPO},resume=true", CLOSING]
    code, output = half.command(*words, "--params=ppo.clip_epsilon=3")
    assert (code, "ppo.clip_epsilon: 0.2 → 3" in output) == (1, True), output


def test_to_go_on_and_to_begin_anew_exclude_each_other(half):
    asked = planned(half.root, "test", {"overwrite": True}, "ppo,grpo", "1", quick=False)
    with pytest.raises(UserError, match="--resume goes on with what is there and overwrite=true begins anew"):
        start(asked, 1, resume=True)


@pytest.mark.parametrize("key", ["grpo.group_size", "ppo.clip_epsilon"])
def test_another_configuration_is_refused_with_the_difference_and_nothing_runs(half, key):
    before = len(half.runs())
    with pytest.raises(UserError, match=rf"{key}: .* → 3"):
        resumed(half, plan(**{key: 3}))
    assert len(half.runs()) == before


def test_without_resume_a_checkpoint_is_not_lost(half):
    with pytest.raises(UserError, match=r"grpo/seed=1 holds an interrupted run .*\n.*\n.*\(kedro study: --resume\)"):
        run_study(half.root, plan(), 1, Console(file=io.StringIO()))
