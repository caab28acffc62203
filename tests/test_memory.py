"""The peak memory of a stage."""

import sys

import pytest

from gemma_alignment.hooks.memory import peak_mb, reset_peak

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def test_a_peak_is_seen_and_forgotten_after_a_reset():
    reset_peak()
    before = peak_mb()
    held = bytearray(64 * 2**20)
    for i in range(0, len(held), 4096):
        held[i] = 1
    assert 60 <= peak_mb() - before <= 80
    del held
    reset_peak()
    assert peak_mb() < before + 20
