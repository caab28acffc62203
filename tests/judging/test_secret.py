"""The key of a judge behind a network goes to its service and nowhere else: whole commands, over real HTTP."""

import json
import shutil

import pytest
from chat_service import completion, error, verdict
from mlflow import MlflowClient

KEY = "sk-planted-behind-a-network-0123456789"


def shy(n, payload):
    """A service that now and then says the key aloud; some requests it refuses, and says it again."""
    if n % 7 == 3:
        return error(500, message=f"you came with {KEY}")
    if '"answer_1": ""' in payload["messages"][1]["content"]:
        return error(400, "content_filter", f"flagged for {KEY}")
    return completion(verdict(("1", "2", "tie")[n % 3]))


@pytest.mark.pipeline
@pytest.mark.cli
def test_no_file_log_store_or_report_holds_the_key(toy_study, service, tmp_path, empty_store):
    """Judged, reported and tracked with the key in the environment; then again by a service that refuses it."""
    root = tmp_path / "study"
    shutil.copytree(toy_study.root, root, ignore=shutil.ignore_patterns("mlruns", "build", "mlflow.db"))
    shutil.copy(empty_store, root / "mlflow.db")
    secret = {"OPENAI_API_KEY": KEY, "PYTHONPATH": str(root / "src")}
    project = type(toy_study)(root, toy_study.environment(secret))
    service.script = shy
    judge = f"judge.kind=openai,judge.base_url={service.url},judge.remote.backoff_s=0.01,judge.canaries=2"

    def run(pipeline, params=""):
        words = ("kedro", "run", f"--pipeline={pipeline}", "--env=test", "--params", f"data_root=data{params}")
        return project.command(*words, timeout=600)

    pace = ",judge.remote.requests_per_minute=60000"
    shown = [run("evaluation", f",{judge}{pace}"), run("reporting")]
    assert [code for code, _ in shown] == [0, 0], shown
    assert service.headers[0]["authorization"] == f"Bearer {KEY}"  # it did go where it belongs
    card = json.loads((root / "data/07_model_output/judge_card.json").read_text("utf-8"))
    assert card["kind"] == "openai" and card["calls"] > 0
    assert "gpt-4o-mini" in (root / "data/08_reporting/report.html").read_text("utf-8")
    runs = {run.info.run_name: run for run in project.runs()}
    client = MlflowClient(f"sqlite:///{root / 'mlflow.db'}")
    judged = runs["evaluation"].info
    assert client.search_traces(locations=[judged.experiment_id], run_id=judged.run_id)

    service.script = lambda n, payload: error(401, "invalid_api_key", f"Incorrect API key provided: {KEY}")
    shown.append(run("evaluation", f",{judge},judge.seed=7"))
    assert shown[-1][0] == 1 and "refused the key" in shown[-1][1]
    assert not [text for _, text in shown if KEY in text]
    holding = [path for path in root.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]
    assert holding == []
