"""A model as a directory: whole or not there, handed on as a path."""

import json
from pathlib import Path

import pytest
from kedro.io import DatasetError

from gemma_alignment.datasets.model_directory import ModelDirectoryDataset


class Model:
    def __init__(self, text, fails=False):
        self.text, self.fails = text, fails

    def save_pretrained(self, directory):
        Path(directory, "adapter_config.json").write_text(json.dumps({"r": self.text}))
        if self.fails:
            raise OSError("disk full")


def test_what_was_saved_is_loaded_as_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    dataset = ModelDirectoryDataset("models/policy")
    assert not dataset.exists()
    dataset.save(Model("one"))
    assert dataset.exists()
    path = dataset.load()
    assert path == str(tmp_path / "models/policy")
    assert json.loads((Path(path) / "adapter_config.json").read_text()) == {"r": "one"}


def test_saving_again_replaces_the_whole_directory(tmp_path):
    dataset = ModelDirectoryDataset(str(tmp_path / "policy"))
    dataset.save(Model("one"))
    (tmp_path / "policy" / "stale.bin").write_text("x")
    dataset.save(Model("two"))
    assert [path.name for path in tmp_path.rglob("*")] == ["policy", "adapter_config.json"]
    assert "two" in (tmp_path / "policy" / "adapter_config.json").read_text()


def test_a_save_that_fails_keeps_the_model_that_was_there(tmp_path):
    dataset = ModelDirectoryDataset(str(tmp_path / "policy"))
    dataset.save(Model("one"))
    with pytest.raises(DatasetError, match="disk full"):
        dataset.save(Model("two", fails=True))
    assert "one" in (tmp_path / "policy" / "adapter_config.json").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]


def test_a_directory_that_is_not_there_is_an_error_with_its_path(tmp_path):
    with pytest.raises(DatasetError, match=r"no model directory at .*policy"):
        ModelDirectoryDataset(str(tmp_path / "policy")).load()


def test_an_empty_directory_is_no_model(tmp_path):
    (tmp_path / "policy").mkdir()
    assert not ModelDirectoryDataset(str(tmp_path / "policy")).exists()


def test_the_preview_shows_configuration_and_sizes(tmp_path):
    dataset = ModelDirectoryDataset(str(tmp_path / "policy"))
    dataset.save(Model("one"))
    shown = json.loads(dataset.preview())
    assert shown == {"bytes": {"adapter_config.json": 12}, "adapter_config.json": {"r": "one"}}
