"""SIGKILL before a run's every write, one after the other: each of them goes on to the same files and curves.

A write is a file that is opened for it, renamed, cut or removed under the data folder, or a transaction of the store.
"""

import os
import random
import shutil
import signal
import sys
from collections import Counter

import pytest
from soak import _forget_stores
from sqlalchemy import event
from sqlalchemy.engine import Engine

pytestmark = pytest.mark.pipeline
RENAMES = ("os.rename", "os.rmdir", "os.truncate")
BEFORE = {
    "data_processing": (),
    "sft": ("data_processing",),
    "reward_model": ("data_processing", "sft"),
    "grpo": ("data_processing", "sft", "reward_model"),
}
"""The stages, and those that each needs."""


def attempt(project, stage, number=None, **params):
    """Run a stage in a process that is shot before its write of that number; its status and what it wrote."""
    _forget_stores()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(project.root / "child.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)
            os.dup2(1, 2)
            seen = watched(project, number)
            project.run(stage, **params)
            (project.root / "writes").write_text("\n".join(seen))
            code = 0
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, (project.root / "writes").read_text().splitlines() if code == 0 else []


def watched(project, number):
    """Every write of this process from now on, as it comes; SIGKILL before the one of that number."""
    data, seen = str(project.data), []

    def look(what):
        seen.append(what)
        if len(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(name, args):
        if name == "open" and isinstance(args[0], str) and args[0].startswith(data):
            if args[2] & (os.O_WRONLY | os.O_RDWR):
                look(f"open {args[0]}")
        elif name in RENAMES and str(args[0]).startswith(data):
            look(f"{name} {args[0]}")

    sys.addaudithook(audit)
    event.listen(Engine, "commit", lambda connection: look("commit"))
    return seen


def left(project):
    """Every file but records, clock readings and checkpoints, and every point of the runs that the records name."""
    files = {
        str(path.relative_to(project.data)): path.read_bytes()
        for path in project.data.rglob("*")
        if path.is_file() and path.name not in ("run.json", "timing.jsonl") and "checkpoints" not in path.parts
    }
    for path in project.data.rglob("run.json"):
        folder = str(path.parent.relative_to(project.data / "07_model_output"))
        record = project.record(folder)
        run = project.client.get_run(record.mlflow_run_id)
        points = [
            (key, point.step, point.value)
            for key in run.data.metrics
            for point in project.client.get_metric_history(record.mlflow_run_id, key)
        ]
        assert max(Counter(point[:2] for point in points).values(), default=1) == 1, points
        files[f"{folder} in MLflow"] = (record.status, run.info.status, sorted(points))
    return files


def check(project, tmp_path, stage, count=None):
    """Shoot the stage before ``count`` of its writes, drawn by chance, or before every one of them."""
    if BEFORE[stage]:
        project.run(*BEFORE[stage])
    shutil.copytree(project.root, tmp_path / "start")
    code, writes = attempt(project, stage)
    assert code == 0, (project.root / "child.log").read_text()[-3000:]
    assert len(writes) > 20
    expected = left(project)
    numbers = range(1, len(writes) + 1)
    for number in numbers if count is None else random.Random(8).sample(numbers, count):
        shutil.rmtree(project.root)
        shutil.copytree(tmp_path / "start", project.root)
        os.chdir(project.root)
        where = f"shot before write {number}, {writes[number - 1]}"
        assert attempt(project, stage, number)[0] == -signal.SIGKILL, where
        code, _ = attempt(project, stage, resume=True)
        assert code == 0, f"{where}\n{(project.root / 'child.log').read_text()[-3000:]}"
        found = left(project)
        different = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        assert not different, f"{where}: {different}"


@pytest.mark.parametrize("stage", ["sft", "grpo"])
def test_a_run_that_is_shot_before_any_of_some_writes_ends_the_same(project, tmp_path, stage):
    check(project, tmp_path, stage, 5)


@pytest.mark.slow
@pytest.mark.parametrize("stage", list(BEFORE))
def test_a_run_that_is_shot_before_any_write_at_all_ends_the_same(project, tmp_path, stage):
    check(project, tmp_path, stage)
