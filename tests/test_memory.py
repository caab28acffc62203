"""The peak memory of a stage."""

import mmap
import sys

import pytest

from gemma_alignment.hooks.memory import peak_mb, reset_peak

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_a_peak_is_seen_and_forgotten_after_a_reset():
    reset_peak()
    before = peak_mb()
    held = mmap.mmap(-1, 64 * 2**20)  # new pages: the heap may have as much that was freed and is resident still
    for i in range(0, len(held), 4096):
        held[i] = 1
    assert 60 <= peak_mb() - before <= 80
    held.close()
    reset_peak()
    assert peak_mb() < before + 20
