"""What stands there outlasts commands that cannot go well, and what is finished is not made again unasked."""

import hashlib
import io
import json
from contextlib import nullcontext

import pytest
from rich.console import Console
from soak import FORKING

from gemma_alignment.datasets.checkpoint_store import CheckpointStore, saved
from gemma_alignment.errors import NothingToDo, UserError
from gemma_alignment.hooks.given import files_given
from gemma_alignment.pipelines.evaluation import create_pipeline
from gemma_alignment.study import processes, warm
from gemma_alignment.study.command import planned
from gemma_alignment.study.execution import run_study
from gemma_alignment.study.plan import Plan, Run
from gemma_alignment.study.project import Opened
from gemma_alignment.study.status import status_of
from gemma_alignment.world.preferences import generate_rows

pytestmark = pytest.mark.pipeline


@pytest.fixture
def prepared(project, shared_start):
    """The project with data, SFT and reward model made."""
    return shared_start(project, "prepared", lambda: project.run("data_processing", "sft", "reward_model"))


@pytest.fixture
def trained(prepared, shared_start):
    """The same with an arm."""
    return shared_start(prepared, "trained", lambda: prepared.run("grpo"))


def state(project):
    """Every file of the data, checkpoints left out, with its content."""
    found = (path for path in project.data.rglob("*") if path.is_file() and "checkpoints" not in path.parts)
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in found}


REPLY = json.dumps({"content_key": "k", "reply": "1"}) + "\n"


def test_other_recorded_verdicts_are_another_evaluation(prepared):
    file = prepared.root / "verdicts.jsonl"
    file.write_text(REPLY)
    given = {"judge.kind": "recorded", "judge.recorded_path": str(file)}
    prepared.run("evaluation", **{key.replace(".", "__"): value for key, value in given.items()})
    record = json.loads((prepared.data / "07_model_output" / "evaluation" / "run.json").read_text())
    assert record["fingerprints"]["recorded"] == hashlib.sha256(REPLY.encode()).hexdigest()  # whatever the file's name
    plan = Plan(("grpo",), (42,), given, "test")
    opened = Opened.open(prepared.root, plan)
    assert opened.is_done(Run(("evaluation",), given, "test"))
    file.write_text(REPLY * 2)
    assert not opened.is_done(Run(("evaluation",), given, "test"))


def test_the_files_that_count_are_those_that_are_read():
    paths = {"recorded_path": "/r", "labelled_path": "/l", "reference_path": "/y"}
    used = {"openai": {"labelled", "references"}, "recorded": {"recorded", "references"}, "none": {"references"}}
    for kind, labels in used.items():
        assert set(files_given(["judge"], {"judge": {**paths, "kind": kind}})) == labels
        assert files_given(["responses"], {"judge": {**paths, "kind": kind}}) == {}


def test_a_judge_that_cannot_be_asked_is_refused_before_it_writes(prepared, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    prepared.run("evaluation")
    before, runs = state(prepared), len(prepared.runs())
    empty = prepared.root / "empty.jsonl"
    empty.touch()
    for params, message in (
        ({"kind": "recorded", "recorded_path": "/nope"}, "no file of recorded judgements at /nope"),
        ({"kind": "recorded", "recorded_path": str(empty)}, "holds no judgement"),
        ({"kind": "openai"}, "OPENAI_API_KEY is not set"),
        ({"kind": "openai", "base_url": "https://api.openai.com/v1/"}, "OPENAI_API_KEY is not set"),
        ({"reference_path": "/nope"}, "no stored verdicts at /nope"),
    ):
        given = {f"judge__{key}": value for key, value in params.items()}
        with pytest.raises(UserError, match=message):
            prepared.run("evaluation", **given)
        with pytest.raises(UserError, match=message):
            dotted = {key.replace("__", "."): value for key, value in given.items()}
            run_study(prepared.root, Plan(("grpo",), (1,), dotted, "test"), 1, Console(file=io.StringIO()))
    assert (state(prepared), len(prepared.runs())) == (before, runs)


def test_the_pairs_are_judged_before_anything_else_is_asked():
    """A judge that fails over them has not replaced the answers to the other questions."""
    order = [node.name for node in create_pipeline().nodes]
    assert order.index("estimate_cost") < order.index("judge_pairs")  # all of it is priced before any of it is asked
    for other in ("question_judge", "judge_again", "judge_labelled"):
        assert order.index("judge_pairs") < order.index(other)


def test_a_source_that_cannot_be_used_leaves_the_data_as_it_is(project):
    project.registry = "gemma_alignment.pipeline_registry"
    file = project.root / "mine.jsonl"
    rows = [json.dumps(row) for row in generate_rows(60, 0.8, 0.7, 0.0, 1)]
    file.write_text("\n".join(rows))
    given = {"preferences__source": "jsonl", "preferences__path": str(file), "pretraining__steps": 1}
    project.run("data_processing", **given)
    before, runs = state(project), len(project.runs())
    assert (project.data / "01_raw/preferences.jsonl").read_text().splitlines() == rows
    assert {path.parent.name for path in before} >= {"01_raw", "02_intermediate", "03_primary", "tokenizer"}
    file.write_text("\n".join(rows[:5]))
    with pytest.raises(UserError, match=r"Only 5 preference rows of \S+mine\.jsonl are usable"):
        project.run("data_processing", overwrite=True, **given)
    assert state(project) == before
    assert project.runs()[-1].info.status == "FAILED"
    file.unlink()
    with pytest.raises(UserError, match=r"preferences\.path is .*mine\.jsonl, but there is no such file"):
        project.run("data_processing", **given)
    assert (state(project), len(project.runs())) == (before, runs + 1)


def test_a_finished_arm_is_not_trained_again_unasked(trained):
    before, runs = state(trained), len(trained.runs())
    with pytest.raises(NothingToDo, match=r"(?s)grpo/seed=42 holds a finished run.*overwrite=true   to repeat it"):
        trained.run("grpo")
    with pytest.raises(UserError, match="resume=true      to leave its training as it is") as error:
        trained.run("ppo", "grpo")
    assert not isinstance(error.value, NothingToDo)
    assert (state(trained), len(trained.runs())) == (before, runs)


def studied(project, **params):
    said = io.StringIO()
    plan = Plan(("grpo",), (42,), params, "test")
    return run_study(project.root, plan, 1, Console(file=said, width=200)), said.getvalue()


def fails_at_once(project, monkeypatch, **params):
    """A training that is asked to replace what is there and has no memory for its model."""
    with monkeypatch.context() as patch, pytest.raises(MemoryError):
        patch.setattr(CheckpointStore, "begin", no_memory)
        project.run("grpo", overwrite=True, **params)


def no_memory(store):
    raise MemoryError("no room for a model")


def checkpoints(project):
    found = (path for path in project.data.rglob("*") if path.is_file() and "checkpoints" in str(path))
    return {path: path.read_bytes() for path in found}


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_training_that_fails_at_once_costs_no_checkpoint_of_the_one_it_was_to_replace(
    prepared, monkeypatch, interrupted
):
    with monkeypatch.context() as patch, pytest.raises(ArithmeticError) if interrupted else nullcontext():
        patch.setenv("SMALL_FAIL", "grpo:42" if interrupted else "")
        prepared.run("grpo")
    before, record, kept = state(prepared), prepared.record("grpo/seed=42"), checkpoints(prepared)
    assert kept and record.status == ("failed" if interrupted else "finished")
    fails_at_once(prepared, monkeypatch, grpo__group_size=3)
    assert (state(prepared), checkpoints(prepared)) == (before, kept)
    prepared.run("grpo", resume=True)
    assert prepared.record("grpo/seed=42").mlflow_run_id == record.mlflow_run_id
    assert "FINISHED" in {run.info.status for run in prepared.runs() if run.info.run_id == record.mlflow_run_id}


def test_one_that_got_further_leaves_its_own_and_none_of_the_old_ones(trained, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(ArithmeticError):
        patch.setenv("SMALL_FAIL", "grpo:42")
        trained.run("grpo", overwrite=True)
    folder = trained.data / "07_model_output/grpo/seed=42"
    assert (trained.record("grpo/seed=42").status, saved(folder / "checkpoints")) == ("failed", [0, 1])
    assert not list(folder.glob(".checkpoints*"))


def test_a_study_reuses_finished_arms_unless_they_are_to_be_repeated(trained, monkeypatch):
    monkeypatch.setattr(processes, "subprocess", FORKING)
    monkeypatch.setattr(warm, "adopt", lambda orphans: False)
    made = trained.record("grpo/seed=42")
    code, said = studied(trained)
    assert (code, trained.record("grpo/seed=42")) == (0, made), said
    assert ["reused", "grpo-seed42"] in [line.split()[:2] for line in said.splitlines()]
    code, said = studied(trained, overwrite=True)
    assert (code, trained.record("grpo/seed=42") == made) == (0, False), said


def test_the_status_tells_runs_of_another_configuration_apart(trained):
    def shown(**params):
        asked = planned(trained.root, "test", params, "grpo", "42", quick=False)
        return {line.name: line for line in status_of(asked.plan, asked.project, asked.parameters)}

    assert shown()["grpo-seed42"].state == "finished"
    lines = shown(grpo={"group_size": 3})
    assert (lines["grpo-seed42"].state, lines["grpo-seed42"].detail) == (
        "other configuration", "grpo.group_size: 6 → 3",
    )  # fmt: skip
    assert lines["sft"].state == "finished"


def test_a_study_gives_its_processes_absolute_paths(project, monkeypatch):
    folder = project.root / "sub"
    folder.mkdir()
    monkeypatch.chdir(folder)
    given = {"preferences": {"source": "jsonl", "path": "pairs.jsonl"}}
    asked = planned(project.root, "test", given, "grpo", "1", quick=False)
    assert asked.plan.params["preferences.path"] == str(folder / "pairs.jsonl")
    assert asked.parameters["preferences"]["path"] == str(folder / "pairs.jsonl")
    given["preferences"]["path"] = "../pairs.jsonl"
    with pytest.raises(UserError, match=r"preferences\.path is '\.\./pairs\.jsonl', which leaves the project"):
        planned(project.root, "test", given, "grpo", "1", quick=False)


def test_the_bars_of_transformers_stay_off_the_screen():
    from transformers.utils import logging

    from gemma_alignment.pipelines.models import prepare

    logging.enable_progress_bar()
    prepare({"device": "cpu", "threads": 1})
    assert not logging.is_progress_bar_enabled()
