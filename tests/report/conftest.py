"""Lets tests import ``fake_study`` under every import mode of pytest, and makes one."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="session")
def made():
    """(study, comparison) of given arguments, made once each."""
    from fake_study import fake_study

    from gemma_alignment.pipelines.reporting.nodes import compare

    known = {}

    def make(**arguments):
        key = json.dumps(arguments, sort_keys=True, default=str)
        if key not in known:
            study = fake_study(**arguments)
            comparison, _ = compare(*study.inputs())
            known[key] = study, json.loads(json.dumps(comparison, allow_nan=False))
        return known[key]

    return make
