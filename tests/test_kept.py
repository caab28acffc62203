"""What the runs in MLflow hold beside their numbers."""

import json
import os

import pytest
from mlflow import MlflowClient

from gemma_alignment.fingerprints import digest
from gemma_alignment.hooks.kept import CALLS, dataset_input, sample
from gemma_alignment.hooks.tracking import SYSTEM_METRICS

PAIRS = [
    {"system_a": "ppo/seed=1", "system_b": "sft", "prompt_id": f"p{i}", "prompt": f"ask {i}", "answer_a": f"a{i}",
     "answer_b": f"b{i}"}
    for i in range(100)
]  # fmt: skip
JUDGED = [
    {**{key: pair[key] for key in ("system_a", "system_b", "prompt_id")}, "order": order, "verdict": "first",
     "reply": "1", "model": "rubric"}
    for pair in PAIRS
    for order in ("ab", "ba")
]  # fmt: skip


def test_a_sample_spreads_over_the_judgements_and_over_both_orders():
    calls = sample(JUDGED, PAIRS)
    assert len(calls) == CALLS
    assert {call["tags"]["order"] for call in calls} == {"ab", "ba"}
    assert calls[-1]["tags"]["prompt_id"] > "p80"


def test_a_call_shows_the_answers_as_the_judge_read_them():
    turned = sample(JUDGED[1:2], PAIRS)[0]
    assert turned["inputs"] == {"prompt": "ask 0", "first answer": "b0", "second answer": "a0"}
    assert turned["outputs"]["first"] == "sft"
    assert sample(JUDGED, []) == sample([], PAIRS) == []


def test_a_file_is_named_by_its_digest_and_its_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n{"a": 2}\n')
    found = dataset_input("prompts_train", path)
    assert found.dataset.digest == digest(path)[:36]
    assert json.loads(found.dataset.profile) == {"num_rows": 2}
    assert [(tag.key, tag.value) for tag in found.tags] == [("mlflow.data.context", "training")]


def artifacts(client, run, path=None):
    return {one.path for one in client.list_artifacts(run.info.run_id, path)}


@pytest.mark.pipeline
def test_a_finished_study_holds_its_data_adapters_report_figures_and_calls(toy_study):
    client = MlflowClient(f"sqlite:///{toy_study.root / 'mlflow.db'}")
    runs = {run.info.run_name: run for run in toy_study.runs()}
    read = {one.dataset.name: one.dataset.digest for one in runs["grpo-seed42"].inputs.dataset_inputs}
    assert set(read) == {"prompts_train", "prompts_eval", "preferences_eval"}
    primary = toy_study.root / "data" / "03_primary"
    assert all(digest(primary / f"{name}.jsonl").startswith(found) for name, found in read.items())
    assert [one.dataset.name for one in runs["data_processing"].inputs.dataset_inputs] == ["preferences_raw"]
    assert "policy/adapter_config.json" in artifacts(client, runs["ppo-seed42"], "policy")
    assert "sft_adapter" in artifacts(client, runs["sft"])
    assert "sft_merged_model" not in artifacts(client, runs["sft"])
    session = runs["default-seed42"]
    assert {"report.html", "comparison.json", "figures"} <= artifacts(client, session)
    assert "figures/wins.svg" in artifacts(client, session, "figures")
    judged = runs["evaluation"]
    traces = client.search_traces(locations=[judged.info.experiment_id], run_id=judged.info.run_id)
    assert 0 < len(traces) <= CALLS
    assert {"prompt", "first answer", "second answer"} == set(json.loads(traces[0].data.request))


@pytest.mark.pipeline
def test_the_system_is_measured_unless_the_user_says_no(project, monkeypatch):
    monkeypatch.delenv(SYSTEM_METRICS)
    project.run("data_processing")
    assert os.environ[SYSTEM_METRICS] == "true"
    monkeypatch.setenv(SYSTEM_METRICS, "false")
    project.run("sft")
    assert os.environ[SYSTEM_METRICS] == "false"


@pytest.mark.pipeline
def test_a_store_that_refuses_an_artifact_does_not_stop_the_run(project, monkeypatch, caplog):
    def refuse(*words):
        raise OSError("the bucket is full")

    monkeypatch.setattr(MlflowClient, "log_artifacts", refuse)
    project.run("data_processing", "sft")
    assert project.record("sft").status == "finished"
    assert "the bucket is full" in caplog.text
