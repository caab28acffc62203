"""A study whose bucket is away in the moment that a run ends, or a phase does."""

from types import SimpleNamespace

import pytest
from rich.console import Console

from gemma_alignment.fingerprints import Record
from gemma_alignment.storage import patience
from gemma_alignment.storage.bucket import Unreachable
from gemma_alignment.study import execution
from gemma_alignment.study.parent import ParentRun
from gemma_alignment.study.plan import Run
from gemma_alignment.study.processes import Child


@pytest.mark.parametrize(("code", "status"), [(0, "running"), (1, "failed"), (-9, "failed")])
def test_a_run_that_ended_well_is_not_said_to_have_failed_where_its_record_is_behind(tmp_path, code, status):
    run = Run(("grpo",), {"seed": 1})
    folder = run.stages[0].directory(tmp_path)
    Record("grpo", 1, "", {}, {}).write(folder)
    process = SimpleNamespace(poll=lambda: code, wrote=lambda record: True, word=None, is_waiting=False)
    object.__new__(ParentRun).settle(Child(run, folder / "run.log", process), tmp_path)
    assert Record.read(folder).status == status


def test_a_bucket_that_is_away_at_the_end_of_a_phase_is_waited_for(tmp_path, monkeypatch):
    calls = []

    def gather():
        calls.append(1)
        if len(calls) < 4:
            raise Unreachable("it is away.")

    monkeypatch.setattr(patience, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=lambda seconds: None))
    monkeypatch.setattr(execution, "build", lambda *words: None)
    study = object.__new__(execution._Study)
    study.children, study.console, study._variables = [], Console(quiet=True), {}
    parameters = {"policy_optimization": {"num_iterations": 1}, "study": {}}
    study._opened = SimpleNamespace(data_root=tmp_path, parameters=parameters)
    study._sight, study.engine = SimpleNamespace(gather=gather), SimpleNamespace(drive=lambda *words: iter(()))
    assert study._through([], 1) and len(calls) == 4
