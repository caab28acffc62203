"""Writes that are whole or not there."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from kedro.io import DatasetError

from gemma_alignment.datasets.atomic import AtomicDataset, beside, restore


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_takes_its_place_at_the_end_of_the_block(tmp_path):
    target = tmp_path / "deep" / "a.json"
    with beside(target) as path:
        assert path.suffix == ".json" and path.parent == target.parent
        path.write_text("new")
        assert not target.exists()
    assert target.read_text() == "new"
    assert names(target.parent) == ["a.json"]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path, kind):
    target = tmp_path / "a"
    write(target, kind, "old")
    with pytest.raises(RuntimeError), beside(target) as path:
        write(path, kind, "half")
        raise RuntimeError
    assert read(target, kind) == "old"
    assert names(tmp_path) == ["a"]


def test_a_directory_replaces_one_that_has_other_files(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "stale").write_text("old")
    with beside(target) as path:
        write(path, "directory", "new")
    assert names(target) == ["part"]
    assert names(tmp_path) == ["model"]


def test_what_a_killed_process_left_goes_with_the_next_write_and_nothing_else_does(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    with beside(tmp_path / "a.json") as path:
        path.write_text("first")
        mine = path.name
    dead = mine.replace(str(os.getpid()), str(killed.pid))
    others = [
        mine.replace(str(os.getpid()), str(os.getppid())),  # runs
        dead.replace(".a.", ".b."),  # another target
        dead.replace(f".{killed.pid}.", f".elsewhere.{killed.pid}."),  # another machine
        dead.replace(".json", ".jsonl"),
    ]
    for name in (dead, *others):
        (tmp_path / name).write_text("half")
    with beside(tmp_path / "a.json") as path:
        path.write_text("second")
    assert names(tmp_path) == sorted(["a.json", *others])
    (tmp_path / dead.replace(".json", "").replace(".a.", ".model.")).mkdir()
    with beside(tmp_path / "model") as path:
        path.mkdir()
    assert names(tmp_path) == sorted(["a.json", "model", *others])


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_the_disk_has_the_content_before_the_name_and_then_the_name(tmp_path, monkeypatch, kind):
    """A rename that outruns its content leaves an empty file after a loss of power."""
    target, done, fsync = tmp_path / "a", [], os.fsync

    def flushed(number):
        fsync(number)
        done.append(Path(f"/proc/self/fd/{number}").readlink())

    monkeypatch.setattr(os, "fsync", flushed)
    with beside(target) as new:
        write(new, kind, "new")
    content = [new] if kind == "file" else [new / "part", new]
    assert done == [*content, tmp_path]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing was written"), beside(tmp_path / "a"):
        pass


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path):
    target = tmp_path / "model"
    write(target, "directory", "old")
    script = textwrap.dedent("""
        import os, pathlib, sys
        from gemma_alignment.datasets.atomic import beside
        target = pathlib.Path(sys.argv[1])
        rename, count = pathlib.Path.rename, []
        def stop_at_second(self, to):
            count.append(to)
            if len(count) == 2:
                os._exit(9)
            return rename(self, to)
        pathlib.Path.rename = stop_at_second
        with beside(target) as path:
            path.mkdir()
            (path / "part").write_text("new")
    """)
    done = subprocess.run([sys.executable, "-c", script, str(target)], check=False, env=dict(os.environ))
    assert done.returncode == 9
    assert not target.exists()
    restore(target)
    assert read(target, "directory") == "old"
    restore(target)  # nothing left to bring back
    assert read(target, "directory") == "old"


def test_the_wrapped_dataset_reads_and_writes_its_format(tmp_path):
    definition = {"type": "json.JSONDataset", "save_args": {"indent": 1}}
    dataset = AtomicDataset(definition, str(tmp_path / "a.json"))
    assert not dataset.exists()
    dataset.save({"é": [1]})
    assert dataset.exists()
    assert dataset.load() == {"é": [1]}
    assert json.loads((tmp_path / "a.json").read_text()) == {"é": [1]}
    assert names(tmp_path) == ["a.json"]


def test_a_save_that_fails_keeps_the_old_file(tmp_path):
    dataset = AtomicDataset("json.JSONDataset", str(tmp_path / "a.json"))
    dataset.save({"a": 1})
    with pytest.raises(DatasetError):
        dataset.save({"a": object()})
    assert dataset.load() == {"a": 1}
    assert names(tmp_path) == ["a.json"]


def test_a_wrong_definition_is_refused_when_it_is_made(tmp_path):
    with pytest.raises(DatasetError):
        AtomicDataset("json.NoSuchDataset", str(tmp_path / "a.json"))


def write(path, kind, text):
    if kind == "file":
        path.write_text(text)
    else:
        path.mkdir()
        (path / "part").write_text(text)


def read(path, kind):
    return (path if kind == "file" else path / "part").read_text()
