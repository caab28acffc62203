"""What days bring, done for real: a full and a read-only disk, a store that is gone, slow or locked, a hang, no memory.

Processes are forked from this one (``soak.FORKING``), which spares each the loading of libraries.
"""

import io
import json
import os
import resource
import signal
import socket
import socketserver
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing, contextmanager, suppress
from types import SimpleNamespace

import pytest
import tracking_server
from killing import at_call
from ports import free_port
from rich.console import Console
from soak import FORKING

from gemma_alignment.datasets.checkpoint_store import CheckpointStore, saved
from gemma_alignment.datasets.run_log import RunLog
from gemma_alignment.errors import UserError
from gemma_alignment.explain import explained
from gemma_alignment.hooks import tracking
from gemma_alignment.hooks.patience import RETRIES
from gemma_alignment.hooks.store import PARENT, await_server
from gemma_alignment.schemas import TrainingState, UpdateRecord
from gemma_alignment.study import processes, warm
from gemma_alignment.study.command import planned, start
from gemma_alignment.study.execution import run_study
from gemma_alignment.study.lock import alone
from gemma_alignment.study.plan import Plan
from gemma_alignment.training.checkpoints import train_on

pytestmark = pytest.mark.pipeline
ARM = "grpo/seed=1"
EVERY = SimpleNamespace(checkpoint_every=1, checkpoints_kept=2)


@contextmanager
def mounted(folder, *options):
    """A disk of its own on ``folder``, really mounted."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", ",".join(options), "tmpfs", str(folder)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"no disk of a test's own can be mounted here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def records(first=0, last=6):
    """Records with a state of 12 kB each."""
    import torch

    for i in range(first, last + 1):
        state = TrainingState(i, {"policy": {"w": torch.full((3000,), float(i))}}, {})
        yield UpdateRecord(i, {"x": i / 3}, {}, ({"response": "é" * 400},), state)


def trained(folder, resume=False):
    store, log = CheckpointStore(folder / "checkpoints", resume), RunLog(folder)
    train_on(store, log, EVERY, lambda state: records(0 if state is None else state.iteration + 1))
    return [log.path(kind).read_bytes() for kind in ("history", "samples")]


def test_a_disk_that_fills_up_in_training_costs_nothing_once_it_has_room(tmp_path):
    whole = trained(tmp_path / "whole")
    with mounted(tmp_path / "disk", "size=160k") as disk:
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(90_000))
        with pytest.raises(Exception) as error:
            trained(disk / "run")
        assert "No space left on" in str(explained(error.value))
        good = saved(disk / "run/checkpoints")
        assert good and good[-1] < 6
        ballast.unlink()
        (disk / "run/history.jsonl").open("a").write('{"half a li')
        assert trained(disk / "run", resume=True) == whole


def test_a_folder_that_became_read_only_is_one_message_and_the_training_goes_on_later(tmp_path):
    whole = trained(tmp_path / "whole")
    with mounted(tmp_path / "disk", "size=1m") as disk:
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Exception) as error:
            options = ["mount", "-o", "remount,ro", str(disk)]
            at_call(patch, CheckpointStore, "save", 4, lambda: subprocess.run(options, check=True))
            trained(disk / "run")
        assert "Read-only file system" in str(explained(error.value))
        subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
        assert trained(disk / "run", resume=True) == whole


def test_a_read_only_data_folder_is_one_message_before_anything_runs(project):
    with mounted(project.root / "disk", "ro") as disk:
        with pytest.raises(Exception) as error:
            project.run("data_processing", data_root=str(disk))
        assert str(explained(error.value)).startswith(f"Cannot write to {disk}")


def test_an_output_with_a_flipped_byte_is_refused_by_what_reads_it_and_made_again_by_a_study(project, caplog):
    project.run("data_processing", "sft", "reward_model")
    file = project.data / "06_models/rm_model_bt/adapter_config.json"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(UserError, match=r"(?s)rm_model_bt is not what the stage reward_model left.*overwrite=true"):
        project.run("grpo")
    assert "grpo-seed42" not in project.states()
    project.run("reward_model", overwrite=True)
    project.run("grpo")
    policy = project.data / "06_models/grpo/seed=42/policy/adapter_config.json"
    policy.write_bytes(policy.read_bytes() + b" ")
    from gemma_alignment.study.project import Opened

    plan = Plan(("grpo",), (42,), {}, "test")
    assert [run.label for run in Opened.open(project.root, plan).left(plan)] == ["grpo-seed42", "evaluation, reporting"]
    assert "policy is not what the stage grpo left there: it is made again" in caplog.text


@pytest.fixture
def forked(project, monkeypatch):
    """The small project prepared; processes of a study are forked."""
    project.run("data_processing", "sft", "reward_model")
    monkeypatch.setattr(processes, "subprocess", FORKING)
    monkeypatch.setattr(warm, "adopt", lambda orphans: False)  # no server: what a test changes here is to be inherited
    return project


def studied(project, resume=False, **params):
    said = io.StringIO()
    plan = Plan(("ppo", "grpo"), (1,), params, "test")
    return run_study(project.root, plan, 2, Console(file=said, width=200), resume), said.getvalue()


def steps(project, folder, key="reward/score_mean"):
    """Every step of a run's key in MLflow, each of them once."""
    counted = Counter(p.step for p in project.client.get_metric_history(project.record(folder).mlflow_run_id, key))
    assert set(counted.values()) <= {1}, counted
    return sorted(counted)


def test_a_tracking_server_that_is_away_between_preparation_and_arms_is_waited_for(forked, tmp_path, monkeypatch):
    """The study looks then at what is done, and the store is opened for it: not a run of it was lost, but all of it."""
    returns = []

    def outage(uri):
        if not returns:
            server.shoot()
            returns.append(threading.Timer(3.0, server.start))
            returns[0].start()
        await_server(uri)

    monkeypatch.setattr("gemma_alignment.study.execution.await_server", outage)
    with tracking_server.serving(f"sqlite:///{forked.root / 'mlflow.db'}", tmp_path) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        code, said = studied(forked)
        returns[0].join()
    assert code == 0, said
    assert set(forked.states().values()) == {"FINISHED"}
    assert steps(forked, ARM) == steps(forked, "ppo/seed=1") == [0, 1, 2, 3]


def test_a_tracking_server_that_is_away_while_a_run_of_a_study_begins_is_waited_for(project, tmp_path, monkeypatch):
    """Its parameters go there one by one; the first finds nobody, for longer than a request is repeated elsewhere."""
    project.run("data_processing", "sft", "reward_model")
    returns, log = [], tracking._log_param

    def outage(hook, name, value):
        if not returns:
            server.shoot()
            returns.append(threading.Timer(8.0, server.start))
            returns[0].start()
        log(hook, name, value)

    monkeypatch.setattr(tracking, "_log_param", outage)
    with tracking_server.serving(f"sqlite:///{project.root / 'mlflow.db'}", tmp_path) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
        parent = project.client.create_run(project.runs()[0].info.experiment_id)
        monkeypatch.setenv(PARENT, parent.info.run_id)
        project.run("grpo", seed=1)
        returns[0].join()
    run = project.client.get_run(project.record(ARM).mlflow_run_id)
    assert run.info.status == "FINISHED" and run.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert run.data.params["seed"] == "1" and len(run.data.params) > 5
    assert os.environ[RETRIES] == "2"


def test_a_process_that_hangs_is_reported_and_ended_and_goes_on_later(forked, monkeypatch):
    """It is stopped by SIGSTOP, so it neither writes nor hears SIGTERM."""
    monkeypatch.setattr(processes, "GRACE", 2.0)
    monkeypatch.setenv("SMALL_HANG", "grpo:1")
    freezer = threading.Thread(target=freeze, args=(forked, ARM))
    freezer.start()
    code, said = studied(forked, **{"study.silence_report_s": 4.0, "study.silence_limit_s": 15.0})
    freezer.join()
    assert code == 1
    assert "grpo-seed1 has written nothing for 0:" in said
    assert "grpo-seed1: it wrote nothing for 0:" in said
    record = forked.record(ARM)
    assert (record.status, "wrote nothing" in record.error) == ("failed", True)
    assert forked.record("ppo/seed=1").status == "finished"
    monkeypatch.delenv("SMALL_HANG")
    assert studied(forked, resume=True)[0] == 0
    assert steps(forked, ARM) == [0, 1, 2, 3]


def freeze(project, folder):
    """SIGSTOP for the process of a run once it has two lines."""
    history = project.data / "07_model_output" / folder / "history.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if history.exists() and history.read_text().count("\n") == 2:
            os.kill(project.record(folder).pid, signal.SIGSTOP)
            return
        time.sleep(0.05)


def test_a_process_without_memory_says_so_and_the_others_go_on(forked, monkeypatch):
    monkeypatch.setenv("SMALL_FILL", "grpo:1")
    code, said = studied(forked)
    assert code == 1
    assert "Out of memory" in said and "microbatch_size" in said
    assert (forked.record(ARM).status, forked.record("ppo/seed=1").status) == ("failed", "finished")
    monkeypatch.delenv("SMALL_FILL")
    assert studied(forked, resume=True)[0] == 0
    assert steps(forked, ARM) == [0, 1, 2, 3]


def test_a_second_study_in_the_same_folder_is_refused_and_the_first_is_named(project):
    first = os.fork()
    if first == 0:
        sys.argv = ["kedro", "study", "--seeds=5"]
        with alone(project.data):
            time.sleep(60)
        os._exit(0)
    try:
        asked = planned(project.root, "test", {}, "ppo,grpo", "1", quick=False)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and not (project.data / "study.lock").exists():
            time.sleep(0.05)
        time.sleep(0.2)
        with pytest.raises(UserError, match=rf"runs in .* already: `kedro study --seeds=5` \(process {first} on "):
            start(asked, 1, resume=False)
        assert project.runs() == []
    finally:
        os.kill(first, signal.SIGKILL)
        os.waitpid(first, 0)
    with alone(project.data):
        assert json.loads((project.data / "study.lock").read_text())["pid"] == os.getpid()


def test_a_locked_store_holds_nothing_up_and_gets_every_point_later(forked, monkeypatch):
    """Another program holds the SQLite file from the second record of both arms until they say they are finished.

    It lets go just then: MLflow takes the end of the runs, so FINISHED is no sign that it has their points.
    """
    from mlflow.store.db.utils import sql

    text = sql.text  # MLflow waits 20 s for a lock, each time; the processes are forked from this one
    monkeypatch.setattr(sql, "text", lambda words: text(words.replace("= 20000;", "= 2000;")))
    monkeypatch.setenv("SMALL_HANG", "ppo:1,grpo:1")
    monkeypatch.setenv("SMALL_HANG_S", "4")
    holder = threading.Thread(target=hold, args=(forked, (ARM, "ppo/seed=1")))
    holder.start()
    code, _ = studied(forked)
    holder.join()
    assert code == 0
    assert steps(forked, ARM) == [0, 1, 2, 3] == steps(forked, "ppo/seed=1")
    assert set(forked.states().values()) == {"FINISHED"}
    assert studied(forked, resume=True)[0] == 0
    assert steps(forked, ARM) == [0, 1, 2, 3] == steps(forked, "ppo/seed=1")


def hold(project, folders):
    """Lock the store from the second line of the runs in ``folders`` until their records say how they ended."""
    deadline = time.monotonic() + 180

    def until(is_so):
        while time.monotonic() < deadline and not all(map(is_so, folders)):
            time.sleep(0.02)

    def begun(folder):
        history = project.data / "07_model_output" / folder / "history.jsonl"
        return history.exists() and history.read_text().count("\n") == 2

    until(begun)
    with closing(sqlite3.connect(project.root / "mlflow.db", timeout=30, isolation_level=None)) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        until(lambda folder: project.record(folder).status != "running")
        connection.execute("ROLLBACK")


class Server:
    """MLflow's own server on the project's store, behind a port that can be slow, or closed."""

    def __init__(self, project):
        self.project, self.process = project, None
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"

    def up(self):
        import requests

        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.project.root}/mlflow.db",
             "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"],
            cwd=self.project.root, env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            with suppress(requests.RequestException):
                if requests.get(f"{self.uri}/health", timeout=1).ok:
                    return self
            time.sleep(0.2)
        raise AssertionError("the server never came up")

    def down(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def server(project):
    one = Server(project).up()
    yield one
    with suppress(ProcessLookupError):
        one.down()


@pytest.mark.cli
def test_a_server_that_is_shot_gets_every_point_when_it_is_back(project, server, monkeypatch):
    """It vanishes after the second record, and is back for the second session only."""
    project.run("data_processing", "sft", "reward_model")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    at_call(monkeypatch, RunLog, "append", 3, server.down)
    project.run("grpo", seed=1)
    record = project.record(ARM)
    assert record.status == "finished"
    assert len(RunLog(project.data / "07_model_output" / ARM).rows("history")) == 4
    assert len(steps(project, ARM)) < 4
    server.up()
    project.run("grpo", seed=1, resume=True)
    assert project.record(ARM).mlflow_run_id == record.mlflow_run_id
    assert steps(project, ARM) == [0, 1, 2, 3]
    assert project.client.get_run(record.mlflow_run_id).info.status == "FINISHED"


@pytest.mark.cli
def test_a_server_that_comes_back_in_time_gets_everything_at_the_end(project, server, monkeypatch):
    project.run("data_processing", "sft", "reward_model")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    at_call(monkeypatch, RunLog, "append", 3, server.down)
    at_call(monkeypatch, RunLog, "close", 1, server.up)
    project.run("grpo", seed=1)
    assert steps(project, ARM) == [0, 1, 2, 3]


class Slow(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """Hands every connection to a server, and each of its answers back a second late."""

    daemon_threads, allow_reuse_address = True, True

    def __init__(self, port):
        self.behind, self.late = port, False
        super().__init__(("127.0.0.1", 0), SlowConnection)


class SlowConnection(socketserver.BaseRequestHandler):
    def handle(self):
        with socket.create_connection(("127.0.0.1", self.server.behind)) as there:
            threading.Thread(target=self.forward, args=(self.request, there, False), daemon=True).start()
            self.forward(there, self.request, True)

    def forward(self, source, target, is_answer):
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if is_answer and self.server.late:
                    time.sleep(1.0)
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


@pytest.mark.cli
def test_a_slow_server_keeps_no_record_waiting_and_gets_every_point(project, server, monkeypatch):
    """Every answer takes a second from the second record on; an append that asked it would take as long."""
    project.run("data_processing", "sft", "reward_model")
    with Slow(server.port) as slow:
        threading.Thread(target=slow.serve_forever, daemon=True).start()
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{slow.server_address[1]}")
        spent, append = [], RunLog.append

        def timed(log, record):
            slow.late = record.iteration >= 1
            begun = time.thread_time(), time.monotonic()
            append(log, record)
            spent.append((time.monotonic() - begun[1]) - (time.thread_time() - begun[0]))

        monkeypatch.setattr(RunLog, "append", timed)
        project.run("grpo", seed=1)
        slow.shutdown()
    assert len(spent) == 4
    assert min(spent[1:]) < 0.5
    assert steps(project, ARM) == [0, 1, 2, 3]
    assert project.client.get_run(project.record(ARM).mlflow_run_id).info.status == "FINISHED"


def test_little_memory_is_a_limit_of_the_process(monkeypatch):
    """What SMALL_FILL does in the small project, seen from here: the limit is real and so is the error."""
    child = os.fork()
    if child == 0:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (1 << 33, resource.RLIM_INFINITY))
            bytearray(1 << 34)
        except MemoryError as error:
            os._exit(0 if str(explained(error)).startswith("Out of memory") else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


JUMPING = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sys/time.h>
#include <time.h>
static long calls;
static long shift(void) { return (calls++ / 40) % 2 ? 86400 : -3600; }
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, now);
    if (clock == CLOCK_REALTIME) now->tv_sec += shift();
    return code;
}
"""
"""The wall clock of a process: a day ahead for forty looks, an hour behind for the next forty."""


@pytest.mark.cli
def test_a_clock_that_jumps_changes_time_stamps_and_nothing_else(project, tmp_path):
    library = tmp_path / "jumping.so"
    (tmp_path / "jumping.c").write_text(JUMPING)
    try:
        made = ["cc", "-shared", "-fPIC", "-o", str(library), str(tmp_path / "jumping.c"), "-ldl"]
        subprocess.run(made, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no C compiler to make a clock jump with: {error}")
    project.run("data_processing", "sft", "reward_model")
    words = ("kedro", "run", "--pipeline=grpo", "--env=test")
    code, output = project.command(*words, "--params=seed=1", LD_PRELOAD=str(library), SMALL_FAIL="grpo:1")
    assert code == 1 and "the loss is not finite" in output
    code, output = project.command(*words, "--params=seed=1,resume=true", LD_PRELOAD=str(library))
    assert code == 0, output
    rows = RunLog(project.data / "07_model_output" / ARM).rows("timing")
    stamps = [row["timestamp"] / 1000 - time.time() for row in rows]
    assert any(abs(gap) > 3000 for gap in stamps)  # it did jump
    assert [row["iteration"] for row in rows] == [0, 1, 2, 3]
    assert project.record(ARM).status == "finished"
    assert steps(project, ARM) == [0, 1, 2, 3]
    project.run("grpo", seed=1, variant="steady")
    history = "07_model_output/grpo{}/seed=1/history.jsonl"
    read = [(project.data / history.format(name)).read_bytes() for name in ("", "@steady")]
    assert read[0] == read[1]
