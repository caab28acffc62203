"""A base in shares: what it does not go with is refused before anything runs, and it is no part of what a run is."""

from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from gemma_alignment.config import ConfigError, build
from gemma_alignment.dotted import merged
from gemma_alignment.errors import UserError
from gemma_alignment.hooks.checks import check_parameters
from gemma_alignment.hooks.values import read_by
from gemma_alignment.parameters.training import ModelingParameters
from gemma_alignment.pipelines import several
from gemma_alignment.pipelines.policy_optimization import create_arm
from gemma_alignment.study.project import read_parameters

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def parameters():
    from kedro.framework.startup import bootstrap_project

    bootstrap_project(ROOT)
    return read_parameters(ROOT, "base", {})


@pytest.mark.parametrize(
    ("name", "value"), [("quantization", "nf4"), ("embedding", "int8"), ("sharing", "separate_copies")]
)
def test_what_cannot_be_cut_into_shares_is_refused_with_the_way_out(name, value):
    values = yaml.safe_load((ROOT / "conf" / "base" / "parameters_modeling.yml").read_text())["modeling"]
    plain = build(ModelingParameters, values, "modeling")
    assert replace(plain, sharding="base").sharding == "base"
    with pytest.raises(ValueError, match=rf"{name} is '{value}': set modeling\.{name}=\S+ or modeling\.sharding=none"):
        replace(plain, **{name: value, "sharding": "base"})


@pytest.mark.parametrize(("name", "value"), [("weights", "merged"), ("engine", "continuous_batching")])
def test_a_way_to_decode_that_needs_a_whole_base_is_refused(parameters, name, value):
    good = merged(parameters, {"modeling": {"sharding": "base"}, "rollout": {"weights": "adapter"}})
    check_parameters(good, parameters, {})
    with pytest.raises(ConfigError, match=rf"rollout\.{name} '\w+' alone, but that is '{value}': set rollout\.{name}="):
        check_parameters(merged(good, {"rollout": {name: value}}), parameters, {})


def test_a_run_of_one_process_is_refused_and_leaves_nothing(project, monkeypatch):
    asked = {"modeling__sharding": "base", "rollout__weights": "adapter"}
    with pytest.raises(UserError, match=r"one process trains each policy .*--processes-per-run N"):
        project.run("grpo", **asked)
    assert project.runs() == []
    monkeypatch.setenv(several.PROCESSES, "2")
    with pytest.raises(UserError, match="These inputs are missing"):
        project.run("grpo", **asked)


@pytest.mark.parametrize(("size", "wanted", "count"), [("3", "1", 3), ("1", "2", 2), (None, None, 1)])
def test_the_processes_are_a_launchers_or_those_that_are_wanted(monkeypatch, size, wanted, count):
    for name, value in (("WORLD_SIZE", size), (several.PROCESSES, wanted)):
        monkeypatch.delenv(name, raising=False) if value is None else monkeypatch.setenv(name, value)
    assert several.processes() == count


def test_the_same_run_in_shares_has_the_same_fingerprint(parameters):
    """So a run goes on in shares or without, and what was made before there were any is what it was."""
    nodes = create_arm("grpo").nodes
    assert "sharding" not in read_by(nodes, parameters)["modeling"]
    assert read_by(nodes, merged(parameters, {"modeling": {"sharding": "base"}})) == read_by(nodes, parameters)
    other = merged(parameters, {"modeling": {"gradient_checkpointing": True}})
    assert read_by(nodes, other) != read_by(nodes, parameters)


def test_mlflow_logs_every_parameter_but_the_uncounted_ones(project, monkeypatch):
    """A run that goes on with another value goes on in its MLflow run, which lets no parameter change."""
    from kedro_mlflow.framework.hooks.mlflow_hook import mlflow_hook

    project.run("data_processing")
    logged = {}
    monkeypatch.setattr("mlflow.log_param", logged.__setitem__)
    names = ["modeling.sharing", "modeling.sharding", "modeling.lora.rank", "sharding", "seed"]
    for number, name in enumerate(names):
        mlflow_hook._log_param(name, number)
    assert logged == {"modeling.sharing": 0, "modeling.lora.rank": 2, "sharding": 3, "seed": 4}
