"""What a machine of a cluster is asked before anything is spent, each answer by its own cause."""

import dataclasses
import os
import threading
import time
from pathlib import Path

import pytest

from gemma_alignment.errors import UserError
from gemma_alignment.storage import lease as leases
from gemma_alignment.storage.bucket import Bucket
from gemma_alignment.study import machine as module
from gemma_alignment.study.engine import Site
from gemma_alignment.study.lock import LOCK, alone, is_locked, renew, token_of
from gemma_alignment.study.machine import Outcome, Premises, Probe, versions
from gemma_alignment.study.remote import refuse_machines

HOST = os.uname().nodename


@pytest.fixture
def premises(tmp_path):
    """Those of a project in a folder that a study holds."""
    (tmp_path / "pyproject.toml").touch()
    with alone(tmp_path / "data"):
        yield Premises.here(Site(tmp_path, tmp_path / "data", "cpu", 1), "pytest")


def test_a_machine_that_shares_everything_is_taken(premises):
    probe = Probe(premises)
    assert probe() == Outcome(0)
    assert probe.answer.read_text() == premises.token
    assert probe.missing(Outcome(0), "node1") is None
    assert not probe.answer.exists()


@pytest.mark.parametrize("name", ["python", "gemma_alignment", "its source", "torch", "transformers", "pytest"])
def test_another_version_is_refused_by_its_name(premises, name):
    other = dataclasses.replace(premises, versions={**premises.versions, name: "1.0"})
    outcome = Probe(other)()
    assert outcome.code == 1
    assert outcome.word == (
        f"{HOST}: other versions than where the study was started: {name} {versions([name])[name]} (the study's "
        "machine has 1.0); install the same on both"
    )


def test_every_version_that_differs_is_named_and_no_other(premises):
    other = dataclasses.replace(premises, versions={**premises.versions, "torch": "1.0", "peft": "0.1"})
    with pytest.raises(UserError) as error:
        other.check()
    assert "torch" in str(error.value) and "peft" in str(error.value) and "numpy" not in str(error.value)


def test_a_package_that_is_not_installed_is_absent():
    assert versions(["no-such-package"])["no-such-package"] == "absent"


def test_an_edited_source_is_another_one_whatever_it_calls_its_version(monkeypatch, tmp_path):
    (tmp_path / "__init__.py").write_text("a = 1")
    monkeypatch.setattr(module.gemma_alignment, "__file__", str(tmp_path / "__init__.py"))
    before = versions()["its source"]
    assert versions()["its source"] == before
    (tmp_path / "__init__.py").write_text("a = 2")
    assert versions()["its source"] != before


def test_a_machine_without_the_project_is_refused(premises):
    (premises.project / "pyproject.toml").unlink()
    with pytest.raises(UserError, match=f"the project's folder {premises.project} is not there; every machine needs"):
        premises.check()


def test_a_folder_of_the_same_name_that_is_not_shared_is_refused(premises):
    text = (premises.data_root / LOCK).read_text()
    (premises.data_root / LOCK).write_text(text.replace(premises.token, "another"))
    with pytest.raises(UserError, match="has to be a shared one"):
        premises.check()
    (premises.data_root / LOCK).unlink()
    with pytest.raises(UserError, match="the data folder cannot be read"):
        premises.check()


def test_storage_without_rights_is_refused(premises):
    nowhere = Probe(premises, name="absent/answer")  # refused to root too
    outcome = nowhere()
    assert outcome.code == 1
    assert outcome.word.startswith(f"{HOST}: the data folder cannot be written (")
    assert outcome.word.endswith("give the user of the runs the right to write there")


def test_storage_that_passes_no_locks_on_is_refused(tmp_path):
    (tmp_path / "pyproject.toml").touch()
    with alone(tmp_path / "data"):
        premises = Premises.here(Site(tmp_path, tmp_path / "data", "cpu", 1))
        assert is_locked(premises.data_root)
    word = Probe(premises)().word  # nobody holds the folder any more: what a machine sees that gets no locks
    assert "are not passed on between machines" in word and "mount it with locks" in word


def test_an_answer_that_does_not_arrive_is_no_shared_folder(premises, monkeypatch):
    monkeypatch.setattr(module, "ARRIVES", 0.2)
    word = Probe(premises).missing(Outcome(0), "node1")
    assert word == f"node1: what it writes into {premises.data_root} is not seen here; it has to be shared"


def test_an_answer_may_take_a_moment(premises):
    probe = Probe(premises)
    late = threading.Thread(target=lambda: (time.sleep(0.3), probe.answer.write_text(premises.token)))
    late.start()
    assert probe.missing(Outcome(0), "node1") is None
    late.join()


def test_what_a_machine_says_is_passed_on():
    probe = Probe(Premises(Path(), Path(), "", {}))
    assert probe.missing(Outcome(1, "node1: no"), "node1") == "node1: no"
    assert probe.missing(Outcome(1), "node1") == "node1: it did not say why"


def test_machines_that_lack_something_are_one_message():
    assert refuse_machines([None, None]) is None
    with pytest.raises(UserError) as error:
        refuse_machines(["node1: no", None, "node3: neither"])
    assert str(error.value) == (
        "The study was not started; of the machines that its runs would get:\n  node1: no\n  node3: neither"
    )


def test_only_a_study_that_begins_anew_changes_the_token(tmp_path):
    with alone(tmp_path):
        first = token_of(tmp_path)
    with alone(tmp_path):
        assert token_of(tmp_path) == first
        renew(tmp_path)
        assert len(token_of(tmp_path)) == 32 and token_of(tmp_path) != first


def test_a_lock_of_a_longer_text_leaves_nothing_behind(tmp_path):
    (tmp_path / LOCK).write_text("x" * 5000)
    with alone(tmp_path):
        assert len(token_of(tmp_path)) == 32
        assert "x" * 10 not in (tmp_path / LOCK).read_text()


def test_a_token_is_read_while_the_text_is_shortened(tmp_path):
    (tmp_path / LOCK).write_text('{"token": "a"}rest of an earlier one"}')
    assert token_of(tmp_path) == "a"


@pytest.fixture
def in_a_bucket(tmp_path, monkeypatch):
    """Premises of a study that holds a bucket: a folder behind another protocol."""
    monkeypatch.setattr(leases, "SETTLED", 0.0)
    (tmp_path / "pyproject.toml").touch()
    bucket = Bucket(f"local://{tmp_path}/store/study")
    lease = leases.Lease.take(bucket, LOCK, {}, "a study")
    yield Premises.here(Site(tmp_path, tmp_path / "data", "cpu", 1, 1, bucket.address, lease.mark)), lease
    lease.release()


def test_a_machine_of_a_study_in_a_bucket_needs_the_bucket_and_no_folder(in_a_bucket):
    premises, lease = in_a_bucket
    probe = Probe(premises)
    assert probe() == Outcome(0) and probe.missing(Outcome(0), "node1") is None
    assert not premises.data_root.exists()
    lease.release()
    assert "is held by another study, or by none, as seen from here" in probe().word
