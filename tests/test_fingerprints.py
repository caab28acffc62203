"""Digests, records, and when a start is refused."""

import json
import os
import subprocess
import sys
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import (
    ATTEMPT,
    QUIET,
    Record,
    differences,
    digest,
    digest_of,
    one_at_a_time,
    refuse,
    refuse_living,
)
from gemma_alignment.liveness import birth
from gemma_alignment.stages import Stage


def record(status="finished", **parameters):
    prints = {"configuration": digest_of(parameters), "sft": "a" * 64}
    return Record("grpo", 42, "", prints, parameters, method="grpo", status=status)


def test_equal_content_in_another_place_has_the_same_digest(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name / "model" / "deep").mkdir(parents=True)
        (tmp_path / name / "model" / "b").write_text("b")
        (tmp_path / name / "model" / "deep" / "a").write_text("a")
    first = digest(tmp_path / "one" / "model")
    assert digest(tmp_path / "two" / "model") == first
    (tmp_path / "two" / "model" / "deep" / "a").write_text("A")
    assert digest(tmp_path / "two" / "model") != first


def test_where_the_base_of_an_adapter_lies_is_no_part_of_what_it_is(tmp_path):
    """A study that was moved, or its SFT made again in another folder, is the same study."""
    adapter = tmp_path / "sft_adapter"
    adapter.mkdir()
    settings = adapter / "adapter_config.json"

    def written(**changes):
        settings.write_text(json.dumps({"r": 16, "base_model_name_or_path": "/here/base_model", **changes}))
        return digest(adapter)

    first = written()
    assert written(base_model_name_or_path="/there/base_model") == first
    assert written(base_model_name_or_path='C:\\a "quoted" folder') == first
    assert written(r=8) != first
    written()
    settings.write_bytes(settings.read_bytes() + b" ")
    assert digest(adapter) != first, "every other byte counts"


@pytest.mark.parametrize("change", ["rename", "move", "empty"])
def test_a_digest_covers_names_and_borders(tmp_path, change):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "a").write_text("xy")
    (folder / "b").write_text("z")
    first = digest(folder)
    if change == "rename":
        (folder / "a").rename(folder / "c")
    elif change == "move":
        (folder / "a").write_text("x")
        (folder / "b").write_text("yz")
    else:
        (folder / "c").write_text("")
    assert digest(folder) != first


def test_the_digest_of_one_file_is_pinned(tmp_path):
    # sha256("abc") = ba7816bf...15ad; then sha256 of the line "f\0ba78...15ad\n"
    (tmp_path / "f").write_text("abc")
    inner = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    whole = subprocess.run(
        [sys.executable, "-c", f"import hashlib; print(hashlib.sha256(b'f\\0{inner}\\n').hexdigest())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert digest(tmp_path / "f") == whole.stdout.strip()


@given(st.dictionaries(st.text(), st.integers() | st.floats(allow_nan=False) | st.text()))
def test_the_order_of_keys_does_not_count(values):
    assert digest_of(values) == digest_of(dict(reversed(values.items())))


def test_differences_name_each_key_old_and_new():
    old = record(grpo={"group_size": 6, "kl": None}, seed=42)
    new = record(grpo={"group_size": 4, "kl": None, "more": True}, seed=42)
    assert differences(old, new) == ["grpo.group_size: 6 → 4", "grpo.more: absent → true"]
    assert differences(old, old) == []


def test_an_input_that_is_not_there_yet_is_no_difference():
    old, new = record(a=1), record(a=1)
    new.fingerprints.pop("sft")
    assert differences(old, new) == []
    new.fingerprints["sft"] = "b" * 64
    assert differences(old, new) == ["sft (input): aaaaaaaaaaaa → bbbbbbbbbbbb"]


@pytest.mark.parametrize("status", ["failed", "killed"])
def test_what_is_not_finished_may_be_replaced(tmp_path, status):
    refuse(tmp_path, record(status, a=1), record("running", a=2))


@pytest.mark.parametrize(("status", "kind"), [("finished", "a finished run"), ("partial", "a part of a run")])
def test_what_stands_may_be_repeated_but_not_replaced(tmp_path, status, kind):
    """A policy that was trained and has not answered yet is as dear as one that has."""
    refuse(tmp_path, record(status, a=1), record("running", a=1))
    with pytest.raises(UserError, match=f"(?s)holds {kind} of .*a: 1 → 2"):
        refuse(tmp_path, record(status, a=1), record("running", a=2))


def test_a_folder_that_another_living_process_writes_to_is_refused(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    other = Record("grpo", 42, "", {}, {}, pid=process.pid, born=birth(process.pid))
    try:
        for overwrite in (False, True):
            with pytest.raises(UserError, match=f"is being written by process {process.pid}"):
                refuse_living(tmp_path, other, overwrite)
    finally:
        process.communicate()
    assert not other.is_alive(tmp_path)
    refuse_living(tmp_path, other, False)
    refuse_living(tmp_path, Record("grpo", 42, "", {}, {}), False)  # this process itself
    refuse_living(tmp_path, None, False)


def test_a_process_of_another_machine_lives_as_long_as_it_writes(tmp_path):
    other = Record("grpo", 42, "", {}, {}, pid=os.getpid(), host="another-machine")
    other.write(tmp_path)
    with pytest.raises(UserError, match=r"on another-machine .* counts as stopped 60 minutes .* overwrite=true"):
        refuse_living(tmp_path, other, False)
    refuse_living(tmp_path, other, True)
    past = time.time() - QUIET - 60
    os.utime(tmp_path / "run.json", (past, past))
    (tmp_path / "timing.jsonl").write_text("")
    assert other.is_alive(tmp_path)
    os.utime(tmp_path / "timing.jsonl", (past, past))
    assert not other.is_alive(tmp_path)
    refuse_living(tmp_path, other, False)


def test_of_two_starts_at_once_the_second_waits_for_the_record_of_the_first(tmp_path):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        with one_at_a_time(tmp_path):
            os.write(writer, b".")
            time.sleep(0.5)
            record("running", a=1).write(tmp_path)
        os._exit(0)
    os.read(reader, 1)
    with one_at_a_time(tmp_path):
        assert Record.read(tmp_path) is not None
    assert os.waitpid(child, 0)[1] == 0
    os.close(reader)
    os.close(writer)


def test_a_number_that_another_process_got_later_is_no_life(tmp_path):
    assert Record("grpo", 42, "", {}, {}).is_alive(tmp_path)
    assert not Record("grpo", 42, "", {}, {}, born="another boot/1").is_alive(tmp_path)


def test_a_record_survives_its_file(tmp_path):
    one = record(a=1)
    one.write(tmp_path / "deep")
    assert Record.read(tmp_path / "deep") == one
    assert set(json.loads((tmp_path / "deep" / "run.json").read_text())) >= {
        "stage", "method", "seed", "variant", "fingerprints", "parameters", "mlflow_run_id", "status", "created",
    }  # fmt: skip
    ended = one.end("failed", "why")
    assert (ended.status, ended.error, ended.pid) == ("failed", "why", os.getpid())
    assert ended.ended is not None


@pytest.mark.parametrize("text", [None, "", "{", "[]", '{"stage": "x"}'])
def test_a_file_that_is_no_record_reads_as_none(tmp_path, text):
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    assert Record.read(tmp_path) is None


def test_the_names_of_stages():
    arm = Stage("grpo", 777, "k8")
    assert (arm.folder, arm.run_name) == ("grpo@k8/seed=777", "grpo@k8-seed777")
    assert Stage("ppo", 42).run_name == "ppo-seed42"
    parameters = {"seed": 1, "prepare_seed": 2, "variant": "v"}
    sft = Stage.of("sft", parameters)
    assert (sft.folder, sft.run_name, sft.seed, sft.variant) == ("sft", "sft", 2, "")
    assert Stage.of("ppo", parameters) == Stage("ppo", 1, "v")


def test_a_record_is_of_the_attempt_whose_process_wrote_it_and_an_older_one_of_none(tmp_path, monkeypatch):
    monkeypatch.setenv(ATTEMPT, "mark")
    Record("grpo", 42, "", {}, {}).write(tmp_path)
    assert Record.read(tmp_path).attempt == "mark"
    values = json.loads((tmp_path / "run.json").read_text())
    del values["attempt"]
    (tmp_path / "run.json").write_text(json.dumps(values))
    assert Record.read(tmp_path).attempt is None
