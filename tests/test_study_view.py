"""The address that opens MLflow's table of runs with the arms side by side."""

import json

import pytest
from mlflow import MlflowClient

from gemma_alignment.study import view


@pytest.fixture
def client(project):
    return MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")


def test_the_view_is_kept_with_the_experiment_and_finds_the_arms_alone(project, client):
    project.run("data_processing", "sft", "reward_model", "grpo")
    number = view.share(client, view.EXPERIMENT)
    assert number == client.get_experiment_by_name("gemma-alignment").experiment_id
    kept = json.loads(client.get_experiment(number).tags["mlflow.sharedViewState.arms"])
    assert "metrics.`eval/score_mean`" in kept["selectedColumns"]
    found = client.search_runs([number], kept["searchFilter"], order_by=[f"{kept['orderByKey']} ASC"])
    assert [run.info.run_name for run in found] == ["grpo-seed42"]


def test_the_newest_study_stands_first_and_is_named(client):
    number = view.share(client, "another")
    for study in ("none", "study-20260101-000000", "study-20260102-000000"):
        client.create_run(number, tags={"method": "ppo", "study": study, "data_root": "data"})
    kept = json.loads(client.get_experiment(number).tags["mlflow.sharedViewState.arms"])
    order = f"{kept['orderByKey']} {'ASC' if kept['orderByAsc'] else 'DESC'}"
    found = client.search_runs([number], kept["searchFilter"], order_by=[order])
    assert {"tags.`study`", "tags.`data_root`"} <= set(kept["selectedColumns"])
    studies = [run.data.tags["study"] for run in found]
    assert studies == ["study-20260102-000000", "study-20260101-000000", "none"]


def test_before_any_run_the_experiment_is_made(client):
    number = view.share(client, "another")
    assert number == client.get_experiment_by_name("another").experiment_id


def test_a_server_that_runs_is_named_and_none_is_started(project, monkeypatch, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@tracking:5000/")
    monkeypatch.setattr(view, "share", lambda client, experiment: "7")
    monkeypatch.setattr(view.os, "execv", lambda *words: pytest.fail("a server was started"))
    view.show(project.root, 5000)
    assert capsys.readouterr().out == (
        "The arms side by side: http://tracking:5000/#/experiments/7/runs?viewStateShareKey=arms\n"
    )


def test_the_store_is_the_one_at_the_projects_root(project, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(view.os, "execv", lambda program, words: started.append(words))
    view.show(project.root, 5001)
    assert "http://127.0.0.1:5001/#/experiments/" in capsys.readouterr().out
    assert started == [view.command(f"sqlite:///{project.root / 'mlflow.db'}", 5001)]
    assert started[0][1:4] == ["-m", "mlflow", "ui"]
