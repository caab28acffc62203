"""Lets the tests of this folder import ``known_answers`` under every import mode of pytest."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


def pytest_configure(config: pytest.Config) -> None:
    """Name the mark of the simulations."""
    config.addinivalue_line("markers", "slow: coverage by simulation, seconds each")
