"""The address that opens MLflow's table of runs with the arms side by side."""

import json
import socket

import pytest
from mlflow import MlflowClient

from gemma_alignment.errors import UserError
from gemma_alignment.study import view


@pytest.fixture
def client(project):
    return MlflowClient(f"sqlite:///{project.root / 'mlflow.db'}")


def kept(client, number, name="arms"):
    return json.loads(client.get_experiment(number).tags[f"mlflow.sharedViewState.{name}"])


def names(client, number, view):
    order = f"{view['orderByKey']} {'ASC' if view['orderByAsc'] else 'DESC'}"
    found = client.search_runs([number], view["searchFilter"], order_by=[order])
    return [run.info.run_name for run in found]


def test_the_view_is_kept_with_the_experiment_and_finds_the_arms_alone(project, client):
    project.run("data_processing", "sft", "reward_model", "grpo")
    number = client.get_experiment_by_name("gemma-alignment").experiment_id
    view.share(client, number)
    found = kept(client, number)
    assert {"metrics.`eval/score_mean`", "tags.`seed`"} <= set(found["selectedColumns"])
    assert names(client, number, found) == ["grpo-seed42"]


@pytest.fixture
def two_studies(client):
    """An experiment with the arms of two studies, of which the second reuses one of the first, and of none."""
    number = client.create_experiment("another")
    old, new = "study-20260101-000000", "study-20260102-000000"
    for study in (old, new):
        client.create_run(number, run_name=study, tags={"stage": "study", "study": study})
    for name, study in (("ppo-seed1", old), ("grpo-seed1", f"{old} {new}"), ("ppo-seed2", new), ("ppo-seed3", "none")):
        tags = {"method": name.partition("-")[0], "study": study, "data_root": "data"}
        client.create_run(number, run_name=name, tags=tags)
    return number, old, new


def test_the_view_of_a_study_shows_its_own_arms_and_those_it_reused(client, two_studies):
    number, old, new = two_studies
    assert view.newest(client, number) == new
    view.share(client, number, new)
    assert names(client, number, kept(client, number, new)) == ["grpo-seed1", "ppo-seed2"]
    columns = set(kept(client, number, new)["selectedColumns"])
    assert {"metrics.`eval/score_mean`", "metrics.`budget/responses`", "tags.`method`", "tags.`seed`"} <= columns
    view.share(client, number, old)
    assert sorted(names(client, number, kept(client, number, old))) == ["grpo-seed1", "ppo-seed1"]


def test_the_view_of_all_arms_shows_the_newest_study_first_and_names_it(client, two_studies):
    number, *_ = two_studies
    view.share(client, number)
    found = kept(client, number)
    assert {"tags.`study`", "tags.`data_root`"} <= set(found["selectedColumns"])
    assert names(client, number, found) == ["ppo-seed2", "grpo-seed1", "ppo-seed1", "ppo-seed3"]


def test_before_any_run_the_experiment_is_made(project, client, free_port, monkeypatch, capsys):
    monkeypatch.setattr(view, "EXPERIMENT", "another")
    monkeypatch.setattr(view.os, "execv", lambda program, words: None)
    view.show(project.root, free_port)
    number = client.get_experiment_by_name("another").experiment_id
    assert f"/#/experiments/{number}/runs?viewStateShareKey=arms" in capsys.readouterr().out


def test_a_server_that_runs_is_named_and_none_is_started(client, two_studies, monkeypatch, capsys):
    number, _, new = two_studies
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@tracking:5000/")
    monkeypatch.setattr(view, "EXPERIMENT", "another")
    monkeypatch.setattr("mlflow.MlflowClient", lambda uri: client)
    monkeypatch.setattr(view.os, "execv", lambda *words: pytest.fail("a server was started"))
    view.show(None, 5000)
    assert capsys.readouterr().out == (
        f"The arms side by side: http://tracking:5000/#/experiments/{number}/runs?viewStateShareKey={new}\n"
        f"Those of every study:  http://tracking:5000/#/experiments/{number}/runs?viewStateShareKey=arms\n"
    )
    assert {"arms", new} == {
        tag.removeprefix(view.TAG) for tag in client.get_experiment(number).tags if tag.startswith(view.TAG)
    }


def test_the_store_is_the_one_at_the_projects_root(project, free_port, monkeypatch, capsys):
    started = []
    monkeypatch.setattr(view.os, "execv", lambda program, words: started.append(words))
    view.show(project.root, free_port)
    assert f"http://127.0.0.1:{free_port}/#/experiments/" in capsys.readouterr().out
    assert started == [view.command(f"sqlite:///{project.root / 'mlflow.db'}", free_port)]
    assert started[0][1:4] == ["-m", "mlflow", "ui"]


def test_a_port_that_is_taken_is_an_error_with_the_way_to_another(project, free_port, monkeypatch):
    monkeypatch.setattr(view.os, "execv", lambda *words: pytest.fail("a server was started"))
    with socket.create_server(("127.0.0.1", free_port)), pytest.raises(UserError) as caught:
        view.show(project.root, free_port)
    assert f'make ui ARGS="--port {free_port + 1}"' in str(caught.value)
