"""A process that wrote its number down runs, or is over, or is another one with the same number."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import Record, refuse_living
from gemma_alignment.liveness import birth, hold, is_here, runs
from gemma_alignment.storage.lease import LEASE, STALE

GONE = 2**22 + 1
"""The number of no process."""
ELSEWHERE = "another-boot/4026531836/17"
"""Birth of a process of another machine, which may have the name of this one, or of this one before a restart."""


def child():
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    return pid


def test_a_process_that_runs_is_alive_until_it_is_over_collected_or_not():
    pid = child()
    born = birth(pid)
    try:
        assert born is not None and runs(pid, born) and runs(pid, None)
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while runs(pid, born) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert os.path.exists(f"/proc/{pid}")  # a zombie: nobody has waited for it
        assert not runs(pid, born) and not runs(pid, None)
    finally:
        os.waitpid(pid, 0)
    assert not runs(pid, born) and birth(pid) is None


def test_another_process_of_the_same_number_is_not_the_one():
    mine = birth(os.getpid())
    assert runs(os.getpid(), mine)
    assert not runs(os.getpid(), "another-boot/1/1")


def test_a_host_name_is_no_machine():
    """Two made from one image share it, and containers, whose numbers mean something else; so does a reboot."""
    host, mine = socket.gethostname(), birth(os.getpid())
    boot, space, ticks = mine.split("/")
    assert is_here(host, mine) and is_here(host, f"{boot}/{space}/1") and is_here(host, None)
    assert not is_here("elsewhere", mine)
    assert not is_here(host, ELSEWHERE)
    assert not is_here(host, f"{boot}/{int(space) + 1}/{ticks}")


def test_a_container_numbers_its_processes_itself():
    words = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c"]
    code = "import os; from gemma_alignment.liveness import birth; print(os.getpid(), birth(os.getpid()))"
    try:
        done = subprocess.run([*words, code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no PID namespace can be made here: {error}")
    number, born = done.stdout.split()
    assert number == "1" and not is_here(socket.gethostname(), born)
    assert born.split("/")[0] == birth(os.getpid()).split("/")[0], "it is the same boot"


def test_a_run_of_another_machine_of_this_name_lives_while_it_holds_its_folder(tmp_path):
    """No process here has its number: that says nothing. After a restart nobody holds it, and it is over at once."""
    record = Record("grpo", 1, "", {}, {}, pid=GONE, born=ELSEWHERE)
    record.write(tmp_path)
    assert not record.is_alive(tmp_path)
    with hold(tmp_path):
        assert record.is_alive(tmp_path)
        with pytest.raises(UserError, match=f"is being written by process {GONE}"):
            refuse_living(tmp_path, record, overwrite=False)


def test_the_process_of_this_number_may_be_that_of_a_container(tmp_path):
    """The first one of each has the number 1: a start is refused beside it, though it is no other number."""
    record = Record("grpo", 1, "", {}, {}, born=ELSEWHERE)
    with hold(tmp_path), pytest.raises(UserError, match="is being written by process"):
        refuse_living(tmp_path, record, overwrite=True)


def test_in_a_bucket_the_lease_tells_of_another_machine_of_this_name(tmp_path):
    record = Record("grpo", 1, "", {}, {}, pid=GONE, born=ELSEWHERE)
    (tmp_path / LEASE).touch()
    assert record.is_alive(tmp_path)
    os.utime(tmp_path / LEASE, (time.time() - STALE - 1,) * 2)
    assert not record.is_alive(tmp_path)


def test_a_record_of_a_number_that_was_given_again_is_not_alive(tmp_path):
    record = Record("grpo", 1, "", {}, {})
    assert record.is_alive(tmp_path)
    assert not Record("grpo", 1, "", {}, {}, born="before-the-reboot/17").is_alive(tmp_path)
