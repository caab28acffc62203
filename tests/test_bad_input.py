"""What a user gets wrong: one message with what, where and what to do, a status that says so, nothing touched."""

import base64
import contextlib
import errno
import hashlib
import socket
import sqlite3
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest
from kedro.io import DatasetError

from gemma_alignment.datasets.preference_source import PreferenceSource
from gemma_alignment.errors import UserError
from gemma_alignment.explain import explained
from gemma_alignment.hooks.store import anchor, check_server

pytestmark = pytest.mark.pipeline


def state(folder):
    """Every file below a folder with its content."""
    return {path: hashlib.sha256(path.read_bytes()).digest() for path in folder.rglob("*") if path.is_file()}


REFUSED = [
    ({"grpo__gruop_size": 4}, r"unknown parameter grpo\.gruop_size; did you mean grpo\.group_size"),
    ({"grpo__group_size": 1}, r"grpo: group_size is 1, .* Use at least 2"),
    ({"grpo__group_size": 5}, r"grpo: group_size 5 does not divide responses_per_iteration 12: choose a"),
    ({"runtime__device": "cuda"}, r"runtime\.device is 'cuda', but no CUDA GPU .* runtime\.device=cpu"),
    ({"data_root": "data/elsewhere"}, r"(?s)inputs are missing.*kedro run --pipeline=data_processing.*elsewhere"),
]


def test_what_cannot_go_well_is_refused_before_any_run_opens(project, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    project.run("data_processing", "sft", "reward_model", "grpo")
    before, runs = state(project.data), len(project.runs())
    for params, message in REFUSED:
        with pytest.raises(UserError, match=message):
            project.run("grpo", seed=7, **params)
    assert state(project.data) == before
    assert len(project.runs()) == runs


@pytest.mark.cli
def test_at_the_shell_it_is_one_message_and_a_status(project):
    """The setting comes before the inputs that are missing too: making them would take long."""
    code, output = project.command("kedro", "run", "--pipeline=grpo", "--env=test", "--params", "grpo.group_size=5")
    lines = output.strip().splitlines()
    assert code == 1
    assert [line for line in lines if line.startswith("Error: ")] == [lines[-1]]
    assert "group_size 5 does not divide" in lines[-1]
    assert "Traceback" not in output and "Node" not in output
    assert not project.data.exists()


def test_an_unknown_pipeline_is_one_message(project):
    with pytest.raises(ValueError, match="gpro") as error:
        project.run("gpro")
    assert explained(error.value) == "unknown pipeline gpro; did you mean grpo?"
    other = ValueError(str(error.value).replace("gpro", "dpo-xyz"))
    assert str(explained(other)).startswith("unknown pipeline dpo-xyz; there are data_processing, sft, reward")


@pytest.mark.cli
def test_a_runner_of_nodes_side_by_side_is_refused(project):
    """Its hooks run in the processes that it starts: the record of a stage would stay at running for good."""
    words = ("kedro", "run", "--pipeline=data_processing", "--runner=ParallelRunner", "--env=test")
    code, output = project.command(*words)
    assert code == 1
    assert "kedro study --workers" in output
    assert not project.data.exists()


def test_an_unknown_environment_is_named_with_the_nearest(project):
    from kedro.config import MissingConfigException

    path = project.root / "conf" / "tset"
    text = f"Given configuration path either does not exist or is not a valid directory: {path}"
    error = MissingConfigException(text)
    assert str(explained(error)).endswith("did you mean test?")


@pytest.fixture(params=[False, True], ids=["nobody listens", "somebody listens and says nothing"])
def silent(request):
    """The address of a server that does not answer."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if request.param:
            server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_tracking_server_that_does_not_answer_is_refused_in_time(project, silent, monkeypatch):
    monkeypatch.setattr("gemma_alignment.hooks.store.ANSWER", 1.0)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", silent)
    begun = time.monotonic()
    with pytest.raises(UserError, match=f"The MLflow server {silent} does not answer"):
        project.run("data_processing")
    assert time.monotonic() - begun < 20
    assert not project.data.exists()


@pytest.fixture
def scripted():
    """A server, or a proxy before it, that is well by its own account and else answers with the statuses given."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.headers.get("Authorization"))
            status = 200 if self.path.startswith("/health") else statuses.pop(0)
            if status is not None:
                self.send_response(status)
                self.end_headers()

        def log_message(self, *words):
            pass

    statuses, asked = [], []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield SimpleNamespace(host=f"127.0.0.1:{server.server_port}", statuses=statuses, asked=asked)
        server.shutdown()


def test_a_run_of_a_study_waits_for_a_server_that_is_away(scripted, monkeypatch, caplog):
    """The study has seen it; a run that begins during an outage is not lost over it, whoever answers meanwhile."""
    monkeypatch.setattr("gemma_alignment.hooks.store.ASKED", 0.05)
    scripted.statuses += [None, 502, 503, 504, 500, 200]
    check_server(f"http://me:secret@{scripted.host}", 60.0)
    assert scripted.statuses == []
    assert [record.message for record in caplog.records if "it is waited for" in record.message] == [
        f"The MLflow server http://***@{scripted.host} does not answer: it is waited for, 60 s"
    ]
    scripted.statuses += [502, 200]
    with pytest.raises(UserError, match=rf"The MLflow server http://{scripted.host} does not answer \(HTTP 502\)"):
        check_server(f"http://{scripted.host}")
    assert scripted.statuses == [200]


@pytest.mark.parametrize("status", [200, 401, 403, 404, 429])
def test_a_server_that_refuses_answers(scripted, status):
    scripted.statuses.append(status)
    check_server(f"http://{scripted.host}/")


def test_a_server_is_asked_as_the_user_that_runs_ask_as(scripted, monkeypatch):
    """A proxy answers 401 to anybody else, whether there is a server behind it or not."""
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "ann")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "pw")
    scripted.statuses.append(200)
    check_server(f"http://{scripted.host}")
    assert scripted.asked == ["Basic " + base64.b64encode(b"ann:pw").decode()]


def test_only_a_run_of_a_study_waits(project, monkeypatch):
    waits = []
    monkeypatch.setattr("gemma_alignment.hooks.store.check_server", lambda uri, patience: waits.append(patience))
    context = SimpleNamespace(config_loader={"mlflow": {"server": {"mlflow_tracking_uri": "http://server"}}})
    anchor(context)
    monkeypatch.setenv("GEMMA_ALIGNMENT_PARENT_RUN", "1")
    anchor(context)
    assert waits == [0.0, 600.0]


def test_a_hub_that_does_not_answer_is_one_message_in_time(tmp_path, silent, monkeypatch):
    """Both the model and the preferences; what was downloaded before would be used."""
    import datasets

    from gemma_alignment.modeling.loading import load_base

    monkeypatch.setattr("gemma_alignment.modeling.hub.ANSWER", 1.0)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", silent)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "base_reference.json").write_text('{"repo_id": "google/gemma-2b-it", "revision": "abc"}')
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"google/gemma-2b-it was never downloaded .* hub does not answer"):
        load_base(str(tmp_path), "none", "float32", "cpu")
    settings = SimpleNamespace(source="huggingface", repository="a/b", revision="abc", split="train", sample_size=1)
    with pytest.raises(UserError, match=r"(?s)Cannot fetch a/b at abc.*preferences\.source=jsonl"):
        PreferenceSource().rows(settings, 1)
    assert time.monotonic() - begun < 20


def test_a_store_that_is_damaged_is_one_message(project):
    import mlflow

    damaged = project.root / "damaged.db"
    damaged.write_bytes(b"SQLite format 3\0" + b"x" * 4096)
    with pytest.raises(Exception) as error:
        mlflow.MlflowClient(f"sqlite:///{damaged}").search_experiments()
    assert str(explained(error.value)).startswith("The MLflow store cannot be used: ")
    assert "MLFLOW_TRACKING_URI" in str(explained(error.value))


@pytest.mark.parametrize(
    "cause",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("I/O error: No space left on device (os error 28)"),
        sqlite3.OperationalError("database or disk is full"),
    ],
)
def test_a_full_disk_is_named_with_what_was_being_written(cause):
    error = DatasetError("Failed while saving data to dataset X(filepath=PurePosixPath('/data/base_model')).")
    error.__cause__ = cause
    assert str(explained(error)).startswith("No space left on the disk for /data/base_model. Free some, or choose")


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 256 kB, really mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no disk of a test's own can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_on_a_full_disk_the_message_says_so_and_what_was_finished_stays(project, small_disk):
    project.run("data_processing", data_root=str(small_disk))
    before = state(small_disk)
    with (small_disk / "ballast").open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(4096))
    with pytest.raises(Exception) as error:
        project.run("sft", data_root=str(small_disk))
    assert str(explained(error.value)).startswith("No space left on the disk")
    (small_disk / "ballast").unlink()
    after = state(small_disk)
    assert before.items() <= after.items()
    assert "FINISHED" not in {run.info.status for run in project.runs() if run.info.run_name.startswith("sft")}


def test_a_damaged_record_is_named_with_a_way_out(tmp_path):
    from kedro_datasets.json import JSONDataset

    path = tmp_path / "run.json"
    path.write_text("{")
    with pytest.raises(DatasetError) as error:
        JSONDataset(filepath=str(path)).load()
    assert str(explained(error.value)).startswith(f"{path} is not JSON (")
    assert "overwrite=true" in str(explained(error.value))


def test_other_errors_keep_their_traceback():
    assert explained(ArithmeticError("the loss is not finite")) is None
