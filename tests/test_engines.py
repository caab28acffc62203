"""``kedro study --engine``: only engines that there are, and places where they can write."""

import sys

import pytest
from click.testing import CliRunner
from fsspec.registry import _registry as registry
from kedro.framework.startup import bootstrap_project

from gemma_alignment import cli
from gemma_alignment.config import ConfigError
from gemma_alignment.errors import UserError
from gemma_alignment.hooks.paths import absolute
from gemma_alignment.parameters.cluster import ENGINES, ClusterParameters, SlurmParameters
from gemma_alignment.storage.address import working_folder
from gemma_alignment.study import engine as module
from gemma_alignment.study.command import planned, show, start
from gemma_alignment.study.engine import Local, Site, engine
from gemma_alignment.study.lock import alone, identity_of, token_of
from gemma_alignment.study.oversight import held

SLURM = SlurmParameters(60, None, None, None, ())


def test_another_engine_is_refused_with_those_that_there_are():
    done = CliRunner().invoke(cli.study, ["--engine=kubernetes"])
    assert done.exit_code == 2
    assert "'kubernetes' is not one of " + ", ".join(map(repr, ENGINES)) in done.output


def test_this_machine_needs_nothing(tmp_path):
    assert engine("local", ClusterParameters(1, 0, None, 0, SLURM), tmp_path) is Local


@pytest.mark.parametrize(("name", "package"), [("slurm", "submitit"), ("ray", "ray")])
def test_an_engine_that_is_not_installed_starts_nothing(project, monkeypatch, name, package):
    monkeypatch.setitem(sys.modules, package, None)
    bootstrap_project(project.root)
    asked = planned(project.root, "test", {}, "grpo", "1", False)
    with pytest.raises(UserError, match=f"--engine {name} needs packages that are not installed"):
        start(asked, None, False, name)
    assert project.runs() == []
    assert not (project.data / "07_model_output").exists()
    with alone(project.data):  # and the folder is free again
        pass


def test_a_study_that_an_engine_refuses_spoils_no_earlier_one(project, monkeypatch):
    """What waits in a queue is meant until a study begins anew; a wrong command is no beginning."""
    bootstrap_project(project.root)
    asked = planned(project.root, "test", {}, "grpo", "1", False)
    with alone(project.data):
        token, identity = token_of(project.data), identity_of(project.data)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError):
        start(asked, None, False, "slurm")
    assert token_of(project.data) == token
    monkeypatch.setattr("gemma_alignment.study.execution.run_study", lambda *words: 0)
    assert start(asked, None, True) == 0 and token_of(project.data) == token
    assert start(asked, None, False) == 0 and token_of(project.data) != token
    assert identity and identity_of(project.data) == identity, "the folder is the same, whatever studies begin there"


@pytest.mark.parametrize("name", ["local", "slurm"])
def test_an_address_is_of_ray_alone(tmp_path, name):
    with pytest.raises(UserError, match=f"give --engine ray with it, not {name}"):
        engine(name, ClusterParameters(1, 0, None, 0, SLURM), tmp_path, "auto")


@pytest.mark.parametrize(("cpus", "gpus"), [(3, 0), (8, 3)])
def test_fewer_places_than_processes_of_a_run_are_refused(tmp_path, cpus, gpus):
    with pytest.raises(UserError, match=f"--processes-per-run 4 needs a GPU.*for {gpus} GPUs and {cpus} cores"):
        engine("slurm", ClusterParameters(cpus, gpus, None, 0, SLURM), tmp_path, processes=4)


def test_a_run_of_several_processes_has_as_many_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "default_workers", lambda device: 4)
    asked = []
    monkeypatch.setattr(module, "shares", lambda *words: asked.append(words) or [frozenset()] * 9)
    for processes in (1, 2, 3, 8):
        local = Local(Site(tmp_path, tmp_path, "cpu", 1, processes))
        with local:
            assert list(local.drive([], None, {})) == []
    assert asked == [(4, 1), (2, 2), (1, 3), (1, 8)]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 0, None, 0), "num_cpus must be at least 1"),
        ((1, -1, None, 0), "num_gpus and retries at least 0"),
        ((1, 0, None, -1), "num_gpus and retries at least 0"),
        ((1, 0, 0.0, 0), "memory_gb must be above 0"),
    ],
)
def test_resources_that_no_machine_has_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ClusterParameters(*values, SLURM)


def test_a_job_of_no_time_is_refused():
    with pytest.raises(ValueError, match="time_min must be at least 1, got 0"):
        SlurmParameters(0, None, None, None, ())


def test_a_local_address_is_its_path():
    assert absolute({"data_root": "file:///mnt/studies/a", "seed": 1}) == {"data_root": "/mnt/studies/a", "seed": 1}


def test_a_bucket_with_credentials_is_refused_before_anything_is_opened():
    with pytest.raises(ConfigError, match="Credentials are never part of it"):
        absolute({"data_root": "s3://key:secret@bucket/a"})
    assert absolute({"data_root": "s3://bucket/a/"}) == {"data_root": "s3://bucket/a"}


def test_an_address_in_the_configuration_is_refused_before_any_run_opens(project):
    with pytest.raises(ConfigError, match=r"data_root is 's4://a': s4:// is no storage"):
        project.run("data_processing", data_root="s4://a")
    assert project.runs() == []


def test_a_cache_that_cannot_be_made_is_named_with_the_variable_that_says_where(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    address = f"local://{tmp_path}/store"
    with pytest.raises(UserError, match=r"is worked on in .* cannot be made .*set XDG_CACHE_HOME to a folder"):
        held(working_folder(address), address).__enter__()


def test_a_dry_run_looks_whether_the_bucket_can_be_listed(project, tmp_path, monkeypatch, capsys):
    bootstrap_project(project.root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.delitem(registry, "gs", raising=False)
    assert not show(planned(project.root, "test", {"data_root": "gs://b/a"}, "grpo", "1", False), False)
    said = capsys.readouterr().out
    assert "bucket  gs://b/a: gs:// needs packages that are not installed: pip install 'gemma_alignment[gs]'" in said
    (tmp_path / "store").mkdir()
    there = {"data_root": f"local://{tmp_path}/store"}
    assert show(planned(project.root, "test", there, "grpo", "1", False), False)
    assert f"bucket  local://{tmp_path}/store can be listed" in capsys.readouterr().out
    assert list((tmp_path / "store").iterdir()) == []
    assert show(planned(project.root, "test", {}, "grpo", "1", False), False)
    assert "bucket" not in capsys.readouterr().out
