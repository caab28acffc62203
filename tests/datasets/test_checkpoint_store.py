"""Checkpoints on disk: whole or not there, verified when read, the last few kept."""

import logging
import subprocess

import pytest
import torch
from kedro.io import DatasetError

from gemma_alignment.datasets import atomic
from gemma_alignment.datasets.checkpoint_store import (
    CheckpointStore,
    CheckpointStoreDataset,
    put_back,
    saved,
    set_aside,
)
from gemma_alignment.errors import UserError
from gemma_alignment.schemas import Mark, TrainingState
from gemma_alignment.training.checkpoints import Checkpoint

FILES = ["policy.safetensors", "policy_optimizer.safetensors", "state.json", "SHA256SUMS"]


def checkpoint(iteration):
    tensors = {
        "policy": {"layer.lora_A.policy.weight": torch.arange(6.0).view(2, 3) + iteration},
        "policy_optimizer": {"layer.lora_A.policy.weight/step": torch.tensor(float(iteration))},
    }
    numbers = {"kl_controller": {"phase": 1, "coef": 0.1 + 0.2}, "budget": {"responses": 3, "seconds": 1e-300}}
    position = {"history": Mark(10 * iteration, f"{iteration:064x}"), "samples": Mark(0, "0" * 64)}
    return Checkpoint(TrainingState(iteration, tensors, numbers), position)


def store(path, resume=True):
    return CheckpointStore(path / "checkpoints", resume)


def filled(path, *iterations, kept=9):
    one = store(path)
    for iteration in iterations:
        one.save(checkpoint(iteration), kept)
    return path / "checkpoints"


def assert_equal(found, expected):
    assert (found.state.iteration, found.state.numbers) == (expected.state.iteration, expected.state.numbers)
    assert found.position == expected.position
    assert found.state.tensors.keys() == expected.state.tensors.keys()
    for name, tensors in expected.state.tensors.items():
        assert found.state.tensors[name].keys() == tensors.keys()
        for key, value in tensors.items():
            assert torch.equal(found.state.tensors[name][key], value)


def test_what_is_saved_comes_back_exactly(tmp_path):
    folder = filled(tmp_path, 7)
    assert_equal(store(tmp_path).begin(), checkpoint(7))
    assert sorted(path.name for path in (folder / "iteration=000007").iterdir()) == sorted(FILES)
    assert sorted(path.name for path in folder.iterdir()) == ["iteration=000007"]


def test_equal_states_have_equal_bytes(tmp_path):
    one, other = (filled(tmp_path / name, 7) / "iteration=000007" for name in ("a", "b"))
    assert all((one / name).read_bytes() == (other / name).read_bytes() for name in FILES)


def test_one_of_a_version_that_kept_no_checksums_of_lines_is_refused_and_stays(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Mark, "_asdict", lambda mark: mark.bytes)
        folder = filled(tmp_path, 7)
    with pytest.raises(UserError, match=r"iteration=000007 was written by another version.*overwrite=true"):
        store(tmp_path).begin()
    assert saved(folder) == [7]


def test_the_checksums_can_be_verified_by_hand(tmp_path):
    folder = filled(tmp_path, 7) / "iteration=000007"
    check = ["sha256sum", "--check", "--strict", "SHA256SUMS"]
    assert subprocess.run(check, cwd=folder, check=False, capture_output=True).returncode == 0
    (folder / "state.json").write_text("{}")
    assert subprocess.run(check, cwd=folder, check=False, capture_output=True).returncode == 1


def test_the_last_few_are_kept(tmp_path):
    folder = filled(tmp_path, 0, 10, 20, 30, kept=2)
    assert saved(folder) == [20, 30]
    assert saved(tmp_path / "nothing") == []


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1])


def halved(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def removed(path):
    path.unlink()


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [truncated, halved, flipped, removed])
def test_a_damaged_one_costs_a_warning_and_the_one_before_is_taken(tmp_path, caplog, name, damage):
    folder = filled(tmp_path, 5, 10)
    damage(folder / "iteration=000010" / name)
    one = store(tmp_path)
    with caplog.at_level(logging.WARNING):
        found = one.begin()
    if damage is truncated and name == "SHA256SUMS":
        assert_equal(found, checkpoint(10))  # only the last line's end is gone
        return
    assert_equal(found, checkpoint(5))
    assert "The checkpoint of iteration 10" in caplog.text and "going back to the one before" in caplog.text
    assert saved(folder) == [5, 10]  # nothing is removed before there is something newer
    one.save(checkpoint(7), kept=2)
    assert saved(folder) == [5, 7]  # a damaged one is none of the last good ones


def test_a_file_that_does_not_belong_there_is_damage_too(tmp_path, caplog):
    folder = filled(tmp_path, 5, 10)
    (folder / "iteration=000010" / "other").write_text("?")
    assert store(tmp_path).begin().state.iteration == 5
    assert "other is not in SHA256SUMS" in caplog.text


def test_a_damaged_one_is_replaced_when_training_comes_by_again(tmp_path):
    folder = filled(tmp_path, 5, 10)
    flipped(folder / "iteration=000010" / "state.json")
    one = store(tmp_path)
    one.begin()
    one.save(checkpoint(10), kept=2)
    assert saved(folder) == [5, 10]
    assert_equal(store(tmp_path).begin(), checkpoint(10))


def test_where_all_are_damaged_training_begins(tmp_path, caplog):
    folder = filled(tmp_path, 5, 10)
    for path in folder.glob("*/state.json"):
        flipped(path)
    assert store(tmp_path).begin() is None
    assert "There is no whole checkpoint" in caplog.text
    assert saved(folder) == []


def test_where_none_can_be_read_at_all_nothing_is_removed(tmp_path, monkeypatch):
    """A disk that gives an error today may give the bytes tomorrow."""
    folder = filled(tmp_path, 5, 10)

    def fails(path):
        raise OSError(5, "Input/output error", str(path))

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.read_bytes", fails)
        with pytest.raises(UserError, match=r"No checkpoint in .* can be read: .*Input/output error.* overwrite=true"):
            store(tmp_path).begin()
    assert saved(folder) == [5, 10]
    assert_equal(store(tmp_path).begin(), checkpoint(10))


def test_checkpoints_that_are_set_aside_come_back_or_go_with_the_next_one(tmp_path):
    folder = filled(tmp_path, 5)
    assert set_aside(folder)
    assert store(tmp_path).begin() is None
    put_back(folder)
    assert_equal(store(tmp_path).begin(), checkpoint(5))
    assert set_aside(folder)
    assert not set_aside(folder)  # what an attempt that was shot had set aside is nobody's
    assert list(tmp_path.iterdir()) == []
    filled(tmp_path, 5)
    assert set_aside(folder)
    filled(tmp_path, 7)
    put_back(folder)
    assert list(tmp_path.iterdir()) == [folder]
    assert saved(folder) == [7]


def test_a_run_that_does_not_resume_begins_and_removes_what_is_there(tmp_path):
    folder = filled(tmp_path, 5)
    assert store(tmp_path, resume=False).begin() is None
    assert saved(folder) == []


def test_a_write_that_fails_leaves_what_was_there_and_says_what_to_do(tmp_path, monkeypatch):
    folder = filled(tmp_path, 5)

    def full(number):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(UserError, match=r"iteration 10 cannot be written .* No space left .* resume=true"):
            store(tmp_path).save(checkpoint(10), kept=1)
    assert [path.name for path in folder.iterdir()] == ["iteration=000005"]
    assert_equal(store(tmp_path).begin(), checkpoint(5))


def test_rests_of_a_write_that_was_killed_go_with_the_next_one(tmp_path):
    folder = filled(tmp_path, 5)
    for name in (".iteration=000010.77.new", ".iteration=000001.gone"):
        (folder / name).mkdir()
        (folder / name / "policy.safetensors").write_text("half")
    (folder / ".DS_Store").write_text("of a file manager")
    filled(tmp_path, 10)
    assert sorted(path.name for path in folder.iterdir()) == [".DS_Store", "iteration=000005", "iteration=000010"]


def test_a_directory_is_gone_at_once_when_it_is_discarded(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "file").write_text("x")
    monkeypatch.setattr(atomic.shutil, "rmtree", lambda path: None)  # as if killed before it was emptied
    atomic.discard(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    monkeypatch.undo()
    (tmp_path / "a").mkdir()
    atomic.discard(tmp_path / "a")
    atomic.discard(tmp_path / "a")  # nothing there is no error
    assert list(tmp_path.iterdir()) == []


def test_the_dataset_gives_the_handle_and_refuses_to_save(tmp_path):
    filled(tmp_path, 5)
    dataset = CheckpointStoreDataset(str(tmp_path / "checkpoints"), resume=True)
    assert dataset.exists()
    assert_equal(dataset.load().begin(), checkpoint(5))
    with pytest.raises(DatasetError, match="save checkpoints to it"):
        dataset.save([])
