"""The audit of the locked versions: what it finds fails it, what it could not look up is never called safe."""

import importlib.util
import json
from pathlib import Path

FILE = Path(__file__).parents[1] / ".ci" / "audit.py"
SPEC = importlib.util.spec_from_file_location("audit", FILE)
audit = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(audit)

SAFE = {"name": "safe", "version": "1.0", "vulns": []}
HIT = {"name": "hit", "version": "2.0", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"], "aliases": []}]}
UNKNOWN = {"name": "unknown", "skip_reason": "Dependency not found and could not be audited: unknown (3.0)"}


def said(*packages):
    return audit.verdict(json.dumps({"dependencies": packages, "fixes": []}), "")


def test_a_vulnerable_version_fails_and_is_named():
    status, lines = said(SAFE, HIT)
    assert status == 1
    assert lines == ["hit 2.0: PYSEC-1, mended in 2.1", "2 of 2 locked versions audited, 1 known vulnerabilities"]


def test_what_the_service_does_not_know_is_counted_as_not_audited():
    status, (line,) = said(SAFE, UNKNOWN, UNKNOWN)
    assert status == 0
    assert line.startswith("1 of 3 locked versions audited, 0 known vulnerabilities; ")
    assert line.endswith("the service does not know the other 2: they were NOT audited")


def test_a_service_that_does_not_answer_passes_and_is_said_and_any_other_failure_fails():
    assert audit.verdict("", "ConnectionError: Max retries exceeded") == (
        0, ["The advisory service does not answer: the locked versions were NOT audited."],
    )  # fmt: skip
    status, lines = audit.verdict("", "usage: pip-audit")
    assert (status, lines[-1]) == (2, "usage: pip-audit")
