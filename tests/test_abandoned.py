"""Which runs that MLflow believes to run are ended: those whose process is over, as far as that can be told here."""

import os
import socket
from types import SimpleNamespace

import pytest

from gemma_alignment.fingerprints import Record
from gemma_alignment.hooks.abandoned import end_abandoned, tags_of
from gemma_alignment.liveness import hold

HERE = socket.gethostname()
FILE, SERVER = "sqlite:////project/mlflow.db", "http://server:5000"
PROCESSES = {
    "gone": f"{HERE} {2**22 + 1} {{here}}/17",
    "restarted": f"{HERE} {os.getpid()} another-boot/4026531836/17",
    "elsewhere": "elsewhere 7 another-boot/4026531836/17",
}


@pytest.fixture
def ended(tmp_path):
    """What becomes of a run whose process is so, in a store, where the record of its folder names it or does not."""
    here = tags_of(tmp_path)["process"].split(" ")[2].rpartition("/")[0]

    def of(process, store, named=False):
        tags = {**tags_of(tmp_path), "process": PROCESSES[process].format(here=here)}
        run = SimpleNamespace(info=SimpleNamespace(run_id="1"), data=SimpleNamespace(tags=tags))
        found = []
        client = SimpleNamespace(
            tracking_uri=store, search_runs=lambda *words: [run], set_terminated=lambda *words: found.append(words)
        )
        previous = Record("grpo", 1, "", {}, {}, mlflow_run_id="1" if named else "2", status="failed")
        end_abandoned(client, "0", "grpo", tmp_path, previous)
        return found

    return of


@pytest.mark.parametrize("store", [FILE, SERVER])
def test_a_run_whose_process_is_over_is_ended_and_one_of_another_machine_is_left(ended, store):
    assert ended("gone", store) == [("1", "KILLED")]
    assert ended("gone", store, named=True) == [("1", "FAILED")]
    assert ended("elsewhere", store) == ended("elsewhere", store, named=True) == []


def test_on_a_server_a_run_of_another_machine_of_this_name_is_left(ended):
    """It may well live: only the record of the folder tells it from one of this machine before a restart."""
    assert ended("restarted", SERVER) == []
    assert ended("restarted", SERVER, named=True) == [("1", "FAILED")]
    assert ended("restarted", FILE) == [("1", "KILLED")]


@pytest.mark.parametrize("store", [FILE, SERVER])
def test_a_run_whose_folder_somebody_holds_is_left(ended, store, tmp_path):
    with hold(tmp_path):
        assert ended("restarted", store) == ended("restarted", store, named=True) == []
