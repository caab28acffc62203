"""The server that a study's processes are forked from: they are the study's own, and they outlive it."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gemma_alignment.study import processes, warm
from gemma_alignment.study.plan import Run
from gemma_alignment.study.processes import shares
from gemma_alignment.study.warm import Forked, Warm, adopt

SOURCE = Path(__file__).parents[1] / "src"
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets a process adopt its orphans")


@pytest.fixture
def light(tmp_path, monkeypatch):
    """A server that loads little, and whose processes end with the status that they are asked for."""
    package = tmp_path / "kedro_stub"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "command.py").write_text(
        "import os, random, sys, time\n"
        "import numpy\n"
        "def main():\n"
        "    print(*sys.argv, os.environ.get('SAID'), random.random(), numpy.random.rand(), flush=True)\n"
        "    time.sleep(60) if sys.argv[1] == 'wait' else sys.exit(int(sys.argv[1]))\n"
    )
    (package / "serve.py").write_text(
        "from gemma_alignment.study import warm\n"
        "warm.LIBRARIES, warm.OWN, warm.LOOKED_UP = ('numpy',), (), ()\n"
        "warm.COMMAND = 'kedro_stub.command'\n"
        "warm.main()\n"
    )
    monkeypatch.setattr(warm, "SERVER", "kedro_stub.serve")
    return {**os.environ, "PYTHONPATH": f"{tmp_path}:{SOURCE}", "PYTHONUNBUFFERED": "1"}


def started(server, word, variables, path):
    with path.open("wb") as output:
        return server.start([word], path.parent, variables, output)


def said(path, seconds=30):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if path.read_text().endswith("\n"):
            return path.read_text().split()
        time.sleep(0.02)
    raise AssertionError("nothing was said")


def test_what_it_forks_is_this_process_s_own_and_says_how_it_ended(light, tmp_path):
    with Warm(tmp_path, light) as server:
        words = ("0", "3", "wait")
        good, bad, shot = (
            started(server, word, {**light, "SAID": f"{word}!"}, tmp_path / f"{word}.log") for word in words
        )
        assert isinstance(good, Forked)
        words = said(tmp_path / "wait.log")
        assert words[:5] == ["python", "-m", "kedro", "wait", "wait!"]
        assert os.getsid(shot.pid) == shot.pid != os.getsid(0), "a group of its own"
        assert shot.poll() is None
        os.killpg(shot.pid, signal.SIGKILL)
        assert (good.wait(), bad.wait(), shot.wait()) == (0, 3, -signal.SIGKILL)
        assert said(tmp_path / "0.log")[4] == "0!"


def test_each_process_has_chance_of_its_own(light, tmp_path):
    with Warm(tmp_path, light) as server:
        for name in ("a", "b"):
            started(server, "0", light, tmp_path / name).wait()
    assert said(tmp_path / "a")[-2] != said(tmp_path / "b")[-2], "random"
    assert said(tmp_path / "a")[-1] != said(tmp_path / "b")[-1], "numpy"


def test_the_end_of_the_server_ends_no_run_and_what_follows_starts_anew(light, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(warm, "anew", lambda words, project, variables, output: asked.append(words))
    with Warm(tmp_path, light) as server:
        going = started(server, "wait", light, tmp_path / "going.log")
        said(tmp_path / "going.log")
        os.kill(server._server.pid, signal.SIGKILL)
        started(server, "0", light, tmp_path / "next.log")
        assert asked == [["0"]]
        assert going.poll() is None
        os.kill(going.pid, signal.SIGTERM)
        assert going.wait() == -signal.SIGTERM


def test_no_server_stays_when_the_study_is_shot(light, tmp_path):
    pid = os.fork()
    if pid == 0:
        server = Warm(tmp_path, light)
        started(server, "0", light, tmp_path / "one.log").wait()
        (tmp_path / "server").write_text(str(server._server.pid))
        time.sleep(60)
        os._exit(0)
    deadline = time.monotonic() + 60
    while not (tmp_path / "server").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    number = int((tmp_path / "server").read_text())
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    while Path(f"/proc/{number}").exists() and time.monotonic() < deadline:
        state = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
        if state == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{number}").exists()


def test_where_it_is_not_wanted_or_not_possible_processes_start_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(warm, "anew", lambda *_: "anew")
    monkeypatch.setattr(subprocess, "Popen", None)
    with Warm(tmp_path, {}, is_wanted=False) as server:
        assert server.start([], tmp_path, {}, None) == "anew"
    monkeypatch.setattr(sys, "platform", "darwin")
    assert adopt(True) is False
    with Warm(tmp_path, {}) as server:
        assert server.start([], tmp_path, {}, None) == "anew"


def test_a_server_with_threads_is_none(light, tmp_path):
    """A fork has the thread that forked and no other."""
    serve = tmp_path / "kedro_stub" / "serve.py"
    thread = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
    serve.write_text(thread + serve.read_text())
    with Warm(tmp_path, light) as server:
        (tmp_path / "log").write_bytes(b"")
        with (tmp_path / "log").open("wb") as output:
            process = server.start(["--help"], tmp_path, os.environ, output)
        assert isinstance(process, subprocess.Popen)
        process.kill()
        process.wait()


def test_what_is_loaded_leaves_no_thread_and_no_model():
    code = (
        "import gc, torch\n"
        "from gemma_alignment.study import warm\n"
        "warm.load()\n"
        "gc.unfreeze()\n"
        "found = [o for o in gc.get_objects() if isinstance(o, torch.Tensor) and (o.numel() > 64 or o.requires_grad)]\n"
        "print(warm.threads(), len(found), torch.cuda.is_initialized())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.stdout.split("\n")[-2] == "[] 0 False"


def test_workers_keep_to_cores_of_their_own_where_they_fill_the_machine(monkeypatch):
    monkeypatch.setattr(processes.os, "sched_getaffinity", lambda pid: {2, 3, 6, 7})
    assert shares(4, 1) == [{2}, {3}, {6}, {7}]
    assert shares(2, 2) == [{2, 3}, {6, 7}]
    assert shares(2, 1) == [frozenset(), frozenset()], "left to the system, which knows what else runs"
    assert shares(1, 4) == [frozenset()]
    assert shares(8, 1) == [frozenset()] * 8


def test_a_worker_is_put_on_its_cores(tmp_path):
    def asleep(words, project, variables, output):
        return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])

    from gemma_alignment.study.plan import Run
    from gemma_alignment.study.processes import Child

    core = frozenset([random.choice(sorted(os.sched_getaffinity(0)))])
    child = Child(Run(("grpo",), {}), tmp_path / "run.log")
    child.start(tmp_path, {}, asleep, core)
    try:
        assert os.sched_getaffinity(child.process.pid) == core
    finally:
        child.process.process.kill()
        child.process.wait()


def test_a_forked_process_has_its_group_before_its_number_is_known(light, tmp_path):
    with Warm(tmp_path, light) as server:
        for number in range(20):
            process = started(server, "wait", light, tmp_path / f"{number}.log")
            os.killpg(process.pid, signal.SIGKILL)  # no such group: ProcessLookupError
            assert process.wait() == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_middle_of_a_start_comes_when_the_process_is_noted(tmp_path, number):
    class Asked(Exception):
        pass

    def ask(*_):
        raise Asked

    def start(words, project, variables, output):
        os.kill(os.getpid(), number)
        time.sleep(0.05)
        return processes.anew(["--version"], project, variables, output)

    child = processes.Child(Run((), {}, None), tmp_path / "run.log")
    before = signal.signal(number, ask)
    try:
        with pytest.raises(Asked):
            child.start(tmp_path, dict(os.environ), start)
        assert signal.getsignal(number) is ask
    finally:
        signal.signal(number, before)
    assert child.process is not None
    blocked = Path(f"/proc/{child.process.pid}/status").read_text().split("SigBlk:")[1].split()[0]
    assert int(blocked, 16) == 0, "what was started can be stopped"
    child.signal(signal.SIGKILL)
    child.process.wait()
