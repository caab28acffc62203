"""SIGKILL before a run's every write, one after the other: each of them goes on to the same files and curves.

A write is a file that is opened for it, renamed, cut or removed under the data folder, or a transaction of the store.
"""

import atexit
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
from test_faults import mounted

from gemma_alignment.datasets import local_store

pytestmark = pytest.mark.pipeline
RENAMES = ("os.rename", "os.rmdir", "os.truncate")
BEFORE = {
    "data_processing": (),
    "sft": ("data_processing",),
    "reward_model": ("data_processing", "sft"),
    "grpo": ("data_processing", "sft", "reward_model"),
}
"""The stages, and those that each needs."""


def attempt(project, *stages, number=None, by=signal.SIGKILL, **params):
    """Run stages in a process that gets a signal before its write of that number; its status and what it wrote."""
    _forget_stores()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.dup2(os.open(project.root / "child.log", os.O_CREAT | os.O_WRONLY | os.O_APPEND), 1)
            os.dup2(1, 2)
            seen = watched(project, number, by)
            project.run(*stages, **params)
            (project.root / "writes").write_text("\n".join(seen))
            code = 0
        finally:
            atexit._run_exitfuncs()
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return code, (project.root / "writes").read_text().splitlines() if code == 0 else []


def watched(project, number, by):
    """Every write of this process from now on, as it comes; the signal ``by`` before the one of that number."""
    data, seen = str(project.data), []

    def look(what):
        seen.append(what)
        if len(seen) == number:
            os.kill(os.getpid(), by)

    def audit(name, args):
        if name == "open" and isinstance(args[0], str) and args[0].startswith(data):
            if args[2] & (os.O_WRONLY | os.O_RDWR):
                look(f"open {args[0]}")
        elif name in RENAMES and str(args[0]).startswith(data):
            look(f"{name} {args[0]}")

    def half(rows):
        look("half of the points")
        return local_store_latest(rows)

    local_store_latest, local_store._latest = local_store._latest, half
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


def every(writes):
    return range(1, len(writes) + 1)


def some(writes):
    return random.Random(8).sample(every(writes), 5)


def opening(writes):
    """Those before there is a record, while the MLflow run is opened, but for two of three."""
    return range(1, next(number for number, write in enumerate(writes, 1) if "open" in write and "run." in write), 3)


def check(project, tmp_path, stage, by, chosen):
    """Shoot or stop the stage before each of the ``chosen`` of its writes, and go on with it."""
    if BEFORE[stage]:
        project.run(*BEFORE[stage])
    shutil.copytree(project.root, tmp_path / "start")
    code, writes = attempt(project, stage)
    assert code == 0, (project.root / "child.log").read_text()[-3000:]
    assert len(writes) > 20
    expected = left(project)
    for number in chosen(writes):
        shutil.rmtree(project.root)
        shutil.copytree(tmp_path / "start", project.root)
        os.chdir(project.root)
        where = f"{by.name} before write {number}, {writes[number - 1]}"
        code, _ = attempt(project, stage, number=number, by=by)
        if by == signal.SIGKILL:
            assert code == -by, where
        else:
            check_ended(project, code, where)
        code, _ = attempt(project, stage, resume=True)
        assert code == 0, f"{where}\n{(project.root / 'child.log').read_text()[-3000:]}"
        assert "RUNNING" not in {run.info.status for run in project.runs()}, where
        found = left(project)
        different = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        assert not different, f"{where}: {different}"


def check_ended(project, code, where):
    """A run that was asked to stop has written down how it ended, unless it had not begun or was through already."""
    states = {run.info.status for run in project.runs()}
    records = [project.record(path.parent) for path in project.data.rglob("run.json")]
    if code != -signal.SIGTERM:
        assert "RUNNING" not in states, where
        assert not [one.stage for one in records if one.status == "running"], where
    if code == 0:
        assert {one.status for one in records} == {"finished"}, where


@pytest.mark.parametrize(("stage", "by"), [("sft", signal.SIGKILL), ("grpo", signal.SIGKILL), ("grpo", signal.SIGTERM)])
def test_a_run_that_is_shot_or_stopped_before_any_of_some_writes_ends_the_same(project, tmp_path, stage, by):
    check(project, tmp_path, stage, by, some)


def test_a_run_that_is_stopped_while_mlflow_opens_it_has_an_end(project, tmp_path):
    check(project, tmp_path, "grpo", signal.SIGTERM, opening)


@pytest.mark.slow
@pytest.mark.parametrize("by", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("stage", list(BEFORE))
def test_a_run_that_is_shot_or_stopped_before_any_write_at_all_ends_the_same(project, tmp_path, stage, by):
    check(project, tmp_path, stage, by, every)


@pytest.mark.parametrize("pipelines", [("grpo",), ("sft", "reward_model")])
@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_is_shot_before_its_record_is_ended_by_the_next_one(project, tmp_path, pipelines, resume):
    """A stage alone, and a session of two, which has an MLflow run of its own and no record at all."""
    project.run(*BEFORE[pipelines[0]])
    shutil.copytree(project.root, tmp_path / "start")
    before = len(project.runs())
    writes = attempt(project, *pipelines)[1]
    expected = left(project)
    shutil.rmtree(project.root)
    shutil.copytree(tmp_path / "start", project.root)
    os.chdir(project.root)
    first = next(number for number, write in enumerate(writes, 1) if "open" in write and "run." in write)
    assert attempt(project, *pipelines, number=first)[0] == -signal.SIGKILL
    shot = project.runs()[before:]
    assert {run.info.status for run in shot} == {"RUNNING"} and len(shot) == len(pipelines)
    assert attempt(project, *pipelines, resume=resume)[0] == 0, (project.root / "child.log").read_text()[-3000:]
    assert {project.client.get_run(run.info.run_id).info.status for run in shot} == {"KILLED"}
    assert "RUNNING" not in {run.info.status for run in project.runs()}
    assert left(project) == expected


@pytest.mark.parametrize("room", [8, 32, 56])
def test_a_disk_that_fills_up_at_any_point_costs_nothing_once_it_has_room(project, tmp_path, room):
    """Data and store on a disk with room for so many kB and no more: the run fails and is gone on with."""
    project.run(*BEFORE["grpo"])
    shutil.copytree(project.root, tmp_path / "start")
    assert attempt(project, "grpo")[0] == 0
    expected = left(project)
    shutil.rmtree(project.root)
    with mounted(project.root, "size=8m") as disk:
        shutil.copytree(tmp_path / "start", disk, dirs_exist_ok=True)
        os.chdir(disk)
        space = os.statvfs(disk)
        (disk / "ballast").write_bytes(bytes(space.f_bavail * space.f_frsize - room * 1024))
        assert attempt(project, "grpo")[0] == 1
        (disk / "ballast").unlink()
        assert attempt(project, "grpo", resume=True)[0] == 0, (disk / "child.log").read_text()[-3000:]
        assert left(project) == expected
        os.chdir(tmp_path)
        _forget_stores()
