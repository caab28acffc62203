"""What a study does about runs that an earlier one left: it waits for them, names them, or writes down their end."""

import dataclasses
import os
import subprocess
import sys
import threading
import time

import pytest

from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import QUIET, Record, refuse_living
from gemma_alignment.liveness import hold, is_held
from gemma_alignment.storage.lease import LEASE
from gemma_alignment.study.orphans import settle, settle_study
from gemma_alignment.study.plan import Plan

WHY = "its machine {host} was lost"


def running(folder, host="elsewhere", **facts):
    record = dataclasses.replace(Record("grpo", 1, "", {}, {}), host=host, **facts)
    record.write(folder)
    return record


def test_a_run_of_another_machine_that_holds_nothing_gets_its_end(tmp_path):
    running(tmp_path)
    settle([tmp_path, tmp_path / "absent"], WHY)
    record = Record.read(tmp_path)
    assert (record.status, record.error) == ("failed", "its machine elsewhere was lost")


def test_a_run_of_this_machine_whose_process_is_gone_gets_its_end(tmp_path):
    running(tmp_path, host=os.uname().nodename, pid=2**22 + 1, born=None)
    settle([tmp_path], WHY)
    assert Record.read(tmp_path).status == "failed"


def test_a_run_of_another_machine_of_this_name_is_looked_at_by_its_lock(tmp_path):
    """No process here has its number: where it is a clone or a container, that says nothing."""
    record = running(tmp_path, host=os.uname().nodename, pid=2**22 + 1, born="another-boot/4026531836/17")
    with hold(tmp_path), pytest.raises(UserError, match=f"is being written by process {record.pid}"):
        settle([tmp_path], WHY, patience=0.3)
    (tmp_path / LEASE).touch()  # the run that goes on waits for that one, in the bucket
    settle([tmp_path], WHY)
    assert Record.read(tmp_path).status == "failed"


def test_a_run_that_is_over_stays_as_it_is(tmp_path):
    ended = running(tmp_path).end("finished")
    ended.write(tmp_path)
    settle([tmp_path], WHY)
    assert Record.read(tmp_path) == ended


def test_a_run_that_still_writes_is_named(tmp_path):
    record = running(tmp_path)
    with hold(tmp_path), pytest.raises(UserError, match=f"is being written by process {record.pid} on elsewhere since"):
        settle([tmp_path], WHY, patience=0.3)
    assert Record.read(tmp_path) == record


def test_a_run_that_is_about_to_end_is_waited_for_and_keeps_its_own_word(tmp_path):
    record, held = running(tmp_path), hold(tmp_path)

    def end():
        time.sleep(0.5)
        record.end("killed", "SIGTERM").write(tmp_path)
        held.close()

    late = threading.Thread(target=end)
    late.start()
    settle([tmp_path], WHY)
    late.join()
    assert (Record.read(tmp_path).status, Record.read(tmp_path).error) == ("killed", "SIGTERM")


def test_every_folder_of_a_study_is_looked_at(tmp_path):
    plan = Plan(("grpo", "ppo"), (1, 2), {}, None)
    folders = [stage.directory(tmp_path) for run in plan.runs for stage in run.stages]
    for folder in folders:
        running(folder)
    settle_study(plan.runs, tmp_path)
    assert len(folders) == 9
    assert {Record.read(folder).status for folder in folders} == {"failed"}


def test_overwrite_does_not_start_beside_a_run_of_another_machine_that_holds_its_folder(tmp_path):
    record = running(tmp_path)
    refuse_living(tmp_path, record, overwrite=True)  # the user's word for what nobody knows
    with hold(tmp_path), pytest.raises(UserError) as error:
        refuse_living(tmp_path, record, overwrite=True)
    assert "wait for it, or stop it" in str(error.value) and "minutes" not in str(error.value)


def test_a_folder_is_held_until_the_process_ends_however(tmp_path):
    words = "import sys, time; from pathlib import Path; from gemma_alignment.liveness import hold\n"
    words += "kept = hold(Path(sys.argv[1])); print('held', flush=True); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", words, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    assert is_held(tmp_path) and hold(tmp_path) is None
    process.kill()
    process.wait()
    assert not is_held(tmp_path)
    with hold(tmp_path):
        assert is_held(tmp_path)
    assert not is_held(tmp_path) and not is_held(tmp_path / "absent")


def test_a_run_of_another_machine_that_holds_its_folder_lives_however_long_it_is_silent(tmp_path):
    record, long_ago = running(tmp_path), time.time() - 2 * QUIET
    with hold(tmp_path):
        for path in tmp_path.iterdir():
            os.utime(path, (long_ago, long_ago))
        assert record.is_alive(tmp_path)
    assert not record.is_alive(tmp_path)
