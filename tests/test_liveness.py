"""A process that wrote its number down runs, or is over, or is another one with the same number."""

import os
import signal
import time

from gemma_alignment.fingerprints import Record
from gemma_alignment.liveness import birth, runs


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
    assert not runs(os.getpid(), "another-boot/1")


def test_a_record_of_a_number_that_was_given_again_is_not_alive(tmp_path):
    record = Record("grpo", 1, "", {}, {})
    assert record.is_alive(tmp_path)
    assert not Record("grpo", 1, "", {}, {}, born="before-the-reboot/17").is_alive(tmp_path)
