"""A bucket and its working folders: what goes where, in which order, and who is right."""

import contextlib
import functools
import itertools
import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from gemma_alignment.datasets import run_log
from gemma_alignment.datasets.checkpoint_store import CheckpointStore, discard, saved
from gemma_alignment.datasets.run_log import KINDS, RunLog
from gemma_alignment.errors import UserError
from gemma_alignment.schemas import TrainingState
from gemma_alignment.storage import bucket as stores
from gemma_alignment.storage import lease, names
from gemma_alignment.storage.bucket import Bucket, Unreachable
from gemma_alignment.storage.mirror import Mirror
from gemma_alignment.storage.names import SUMS, but_checkpoints, group_of, small
from gemma_alignment.training.checkpoints import Checkpoint

RUN = "07_model_output/grpo/seed=1"
OLD = "/iteration=000000/", "/iteration=000002/"
CACHE = "07_model_output/judge_cache.jsonl"


@pytest.fixture
def machine(address, tmp_path):
    """``machine(name)``: the mirror of a machine of this name, as a process that starts there sees it."""
    return lambda name: Mirror(address, tmp_path / name)


def put(one, name, content):
    path = one.folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def tree(one):
    """Every file of a study in a working folder."""
    files = (path for path in one.folder.rglob("*") if path.is_file())
    found = {path.relative_to(one.folder).as_posix(): path.read_bytes() for path in files}
    return {name: content for name, content in found.items() if names.is_data(name)}


def push(one, **how):
    one.push(one.groups(), **how)


def test_files_belong_to_a_run_or_stand_alone():
    assert group_of(f"{RUN}/checkpoints/iteration=000001/state.json") == RUN
    assert group_of("06_models/grpo@k8/seed=1/policy/a") == "06_models/grpo@k8/seed=1"
    assert group_of("07_model_output/sft/run.json") == "07_model_output/sft"
    assert group_of(CACHE) == CACHE


def test_another_machine_gets_the_same_bytes(machine):
    here = machine("here")
    for name, content in ((f"{RUN}/run.json", b"{}"), ("06_models/base/a b.bin", bytes(range(256))), (CACHE, b"")):
        put(here, name, content)
    for name in (".hidden", f"{RUN}/.run.json.host.1.new", "study.lock", f"{RUN}/lease.json", "a/x.claims"):
        put(here, name, b"not of the study")
    push(here)
    there = machine("there")
    there.pull()
    assert tree(there) == tree(here) and len(tree(here)) == 3
    assert set(here.bucket.listing()) == set(tree(here))


def test_a_stray_key_that_is_no_name_of_a_file_here_is_passed_over(machine, monkeypatch):
    """In an object store a key is any text: an empty part, and one that would climb out of the folder."""
    here, there = machine("here"), machine("there")
    put(here, f"{RUN}/run.json", b"{}"), push(here)
    fs, root = there.bucket._fs, there.bucket._root
    names_of_none = ("", "/x", "a//x", "a/", "./a/x", "a/..", "../out/lease.json")
    strays = [root, *(f"{root}/{name}" for name in names_of_none)]
    real = fs.find

    def found(*words, **more):
        one = next(iter((listed := real(*words, **more)).values()))
        return listed | dict.fromkeys(strays, one)

    monkeypatch.setattr(fs, "find", found)
    assert set(there.bucket.listing()) == {f"{RUN}/run.json"}
    there.pull()
    assert tree(there) == tree(here)
    assert not (there.folder.parent / "out").exists()


@pytest.mark.parametrize("may_write", [True, False])
def test_a_lease_has_the_time_of_this_machines_clock_for_who_only_looks(machine, monkeypatch, may_write):
    real, ahead = stores._seconds, 1000.0
    monkeypatch.setattr(stores, "_seconds", lambda when: real(when) + ahead)
    here, there = machine("here"), machine("there")
    here.bucket.write(f"{RUN}/lease.json", b"{}")
    if not may_write:
        monkeypatch.setattr(Bucket, "write", lambda *words: (_ for _ in ()).throw(Unreachable("no right")))
    there.pull()
    late = (there.folder / RUN / "lease.json").stat().st_mtime - time.time()
    assert abs(late if may_write else late - ahead) < 30
    assert set(here.bucket.listing()) == {f"{RUN}/lease.json"}


def test_only_what_was_changed_is_sent_and_fetched(machine, monkeypatch):
    here, there, moved = machine("here"), machine("there"), []
    for verb in ("send", "fetch"):
        real = getattr(Bucket, verb)

        def noted(self, name, path, verb=verb, real=real):
            moved.append((verb, name))
            return real(self, name, path)

        monkeypatch.setattr(Bucket, verb, noted)
    put(here, "a/1", b"1"), put(here, "a/2", b"2")
    push(here), push(here), there.pull(), there.pull()
    put(here, "a/2", b"22")
    push(machine("here")), machine("there").pull()  # as processes that start later
    push(there)
    first = [(verb, name) for verb in ("send", "fetch") for name in ("a/1", "a/2")]
    assert moved == [*first, ("send", "a/2"), ("fetch", "a/2")]
    (here.folder / "a/1").unlink()
    here.push(["a/1"]), there.pull()
    assert set(tree(there)) == set(here.bucket.listing()) == {"a/2"}


def test_what_nobody_else_has_changed_may_be_newer_here_and_stays(machine):
    here = machine("here")
    put(here, f"{RUN}/history.jsonl", b"1\n")
    push(here)
    put(here, f"{RUN}/history.jsonl", b"1\n2\n"), put(here, f"{RUN}/run.json", b"{}")
    machine("here").pull()
    assert tree(here) == {f"{RUN}/history.jsonl": b"1\n2\n", f"{RUN}/run.json": b"{}"}


def test_where_another_machine_went_on_its_whole_run_replaces_this_ones(machine):
    here, there = machine("here"), machine("there")
    put(here, f"{RUN}/history.jsonl", b"1\n")
    push(here), there.pull()
    put(here, f"{RUN}/history.jsonl", b"1\n2\n3\n"), put(here, f"{RUN}/checkpoints/iteration=000003/state.json", b"3")
    put(there, f"{RUN}/history.jsonl", b"1\n2\n")
    push(there)
    put(here, "06_models/mine", b"another group is not touched")
    here.pull()
    assert tree(here) == {f"{RUN}/history.jsonl": b"1\n2\n", "06_models/mine": b"another group is not touched"}
    assert not (here.folder / RUN / "checkpoints").exists()


def test_what_another_process_of_this_machine_writes_is_left_to_it(machine):
    here, there, other = machine("here"), machine("there"), machine("here")
    put(here, f"{RUN}/history.jsonl", b"1\n"), push(here), there.pull()
    put(there, f"{RUN}/history.jsonl", b"1\n2\n"), push(there)
    other.claim([RUN])
    put(here, f"{RUN}/half", b"half"), here.pull(), push(here)
    assert tree(here) == {f"{RUN}/history.jsonl": b"1\n", f"{RUN}/half": b"half"}
    assert set(here.bucket.listing()) == {f"{RUN}/history.jsonl"}
    other.pull()
    assert tree(other) == {f"{RUN}/history.jsonl": b"1\n2\n"}
    other.close(), put(here, f"{RUN}/half", b"half"), push(here)
    assert f"{RUN}/half" in here.bucket.listing()


def test_replies_that_were_paid_for_are_kept_of_both(machine):
    here, there = machine("here"), machine("there")
    put(here, CACHE, b"one\n"), push(here), there.pull()
    put(here, CACHE, b"one\nhere\nhere\n"), put(there, CACHE, b"one\nthere\ntorn")
    push(there)
    here.pull()
    assert tree(here)[CACHE] == b"one\nthere\ntorn\nhere\nhere\n"
    push(here), there.pull()
    assert tree(there) == tree(here)
    put(here, "07_model_output/judge_cache.spend.jsonl", b"never brought\n")
    here.pull()
    assert tree(here)["07_model_output/judge_cache.spend.jsonl"] == b"never brought\n"


def test_lines_go_there_between_checkpoints_but_only_when_they_grew(machine):
    here = machine("here")
    put(here, CACHE, b"1\n"), put(here, f"{RUN}/history.jsonl", b"1\n2\n"), put(here, f"{RUN}/run.json", b"{}")
    push(here, only_grown=True)
    assert set(here.bucket.listing()) == {CACHE, f"{RUN}/history.jsonl"}
    put(here, CACHE, b"1\n2\n"), put(here, f"{RUN}/history.jsonl", b"1\n")
    push(here, only_grown=True)
    assert here.bucket.read(CACHE) == b"1\n2\n"
    assert here.bucket.read(f"{RUN}/history.jsonl") == b"1\n2\n"


def test_who_only_looks_brings_no_contents_of_checkpoints_and_no_models(machine):
    here, there = machine("here"), machine("there")
    names = (f"{RUN}/checkpoints/iteration=000001/{SUMS}", f"{RUN}/run.json", "06_models/a/b")
    for name in (*names, f"{RUN}/checkpoints/iteration=000001/policy.safetensors"):
        put(here, name, name.encode())
    push(here)
    there.pull(small)
    assert set(tree(there)) == set(names[:2]) and saved(there.folder / RUN / "checkpoints") == [1]
    there.pull(but_checkpoints)
    assert set(tree(there)) == set(names)
    push(there)
    there.pull()
    assert tree(there) == tree(here)


def test_what_a_cleaner_removed_here_is_brought_again(machine):
    here = machine("here")
    names = [f"{RUN}/checkpoints/iteration=00000{i}/{name}" for i in (1, 2) for name in (SUMS, "state.json")]
    for name in ("06_models/a/b", *names):
        put(here, name, b"x")
    push(here)
    whole = tree(here)
    (here.folder / "06_models/a/b").unlink()
    discard(here.folder / RUN / "checkpoints")
    here.pull()
    assert tree(here) == whole
    discard(here.folder / RUN / "checkpoints/iteration=000001")  # given up for a later one, and that was not said yet
    here.pull()
    assert set(tree(here)) == set(whole) - set(names[:2])


@pytest.mark.parametrize("taken", ["*/state.json", "*/iteration=00000[12]/*", "*/*=000002/*"])
def test_what_a_cleaner_removed_here_stays_in_the_bucket(machine, taken):
    """Whoever oversees a study knows of a checkpoint's contents, brings none of them here, and then brings its own."""
    here = machine("here")
    for name in (f"{RUN}/checkpoints/iteration=00000{i}/{name}" for i in (1, 2) for name in (SUMS, "state.json")):
        put(here, name, b"x")
    put(here, f"{RUN}/run.json", b"{}"), push(here)
    whole = tree(here)
    for path in here.folder.rglob("*"):
        if path.match(taken):
            path.unlink()
    here.pull(but_checkpoints), put(here, f"{RUN}/history.jsonl", b"1\n"), push(here)
    assert set(here.bucket.listing()) == {*whole, f"{RUN}/history.jsonl"}
    here.pull()
    assert tree(here) == {**whole, f"{RUN}/history.jsonl": b"1\n"}


def test_a_run_that_goes_on_removes_nothing_that_a_cleaner_took(machine):
    here = machine("here")
    for i in (1, 2):
        put(here, f"{RUN}/checkpoints/iteration=00000{i}/{SUMS}", b"x")
        put(here, f"{RUN}/checkpoints/iteration=00000{i}/state.json", b"x")
    push(here)
    (here.folder / RUN / "checkpoints/iteration=000001/state.json").unlink()
    put(here, f"{RUN}/history.jsonl", b"1\n"), push(here)
    assert f"{RUN}/checkpoints/iteration=000001/state.json" in here.bucket.listing()
    discard(here.folder / RUN / "checkpoints/iteration=000001"), push(here)
    assert not any("000001" in name for name in here.bucket.listing())


def test_a_bucket_that_was_emptied_does_not_empty_the_working_folder(machine):
    here = machine("here")
    put(here, "06_models/a", b"x"), push(here)
    here.bucket.remove(["06_models/a"])
    with pytest.raises(UserError, match=r"is empty, and .* holds what was there"):
        here.pull()
    assert tree(here) == {"06_models/a": b"x"}


def test_what_is_removed_while_it_is_looked_at_is_passed_over(machine, monkeypatch):
    here, there = machine("here"), machine("there")
    put(here, "a/1", b"1"), put(here, "a/2", b"2"), push(here)
    listing = there.bucket.listing()
    here.bucket.remove(["a/1"])
    with monkeypatch.context() as patch:
        patch.setattr(there.bucket, "listing", lambda: listing)
        there.pull()
    assert tree(there) == {"a/2": b"2"}
    there.pull()
    assert tree(there) == {"a/2": b"2"}


def test_a_lease_tells_whether_a_run_of_another_machine_lives(machine, monkeypatch):
    from gemma_alignment.fingerprints import Record

    here, there = machine("here"), machine("there")
    record = Record("grpo", 1, "", {}, {}, host="elsewhere", pid=7)
    record.write(here.folder / RUN), push(here)
    monkeypatch.setattr(lease, "SETTLED", 0.0)
    held = lease.Lease.take(here.bucket, f"{RUN}/lease.json", {"host": "elsewhere"}, "it")
    there.pull(small)
    assert record.is_alive(there.folder / RUN)
    os.utime(there.folder / RUN / "lease.json", (1, 1))
    assert not record.is_alive(there.folder / RUN)
    held.renew(), there.pull(small)
    assert record.is_alive(there.folder / RUN)
    held.release(), there.pull(small)
    assert not (there.folder / RUN / "lease.json").exists()


def test_a_working_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="set XDG_CACHE_HOME to a folder of this machine"):
        Mirror(f"local://{tmp_path}/store", tmp_path / "file" / "copy")


def test_who_loses_its_lease_in_the_middle_of_a_push_writes_and_removes_nothing_more(machine, monkeypatch):
    """The other one's object is in the place of ours after any number of operations of a push."""
    monkeypatch.setattr(lease, "SETTLED", 0.0)
    here, names = machine("here"), [f"{RUN}/checkpoints/iteration=000002/{SUMS}", f"{RUN}/run.json"]
    for count in range(6):
        put(here, f"{RUN}/checkpoints/iteration=000001/{SUMS}", b"1")
        here.push([RUN])
        held = lease.Lease.take(here.bucket, f"{RUN}/lease.json", {"host": "elsewhere"}, "it")
        discard(here.folder / RUN / "checkpoints/iteration=000001")
        for name in names:
            put(here, name, str(count).encode())
        operations, real = [], {verb: getattr(Bucket, verb) for verb in ("send", "remove")}

        def counted(self, what, *more, verb, real=real, operations=operations, count=count):
            operations.append(verb)
            result = real[verb](self, what, *more)
            if len(operations) == count:
                self.write(f"{RUN}/lease.json", b"{}")
            return result

        with monkeypatch.context() as patch:
            for verb in real:
                patch.setattr(Bucket, verb, functools.partialmethod(counted, verb=verb))
            if count == 0:
                here.bucket.write(f"{RUN}/lease.json", b"{}")
            with pytest.raises(lease.Lost) if count < 3 else contextlib.nullcontext():
                here.push([RUN], before=held.check)
            assert operations == ["send", "send", "remove"][:count]
        here.bucket.remove([f"{RUN}/lease.json"])
        here.push([RUN])
        assert set(here.bucket.listing()) == set(names)


class Training:
    """Iterations with lines and checkpoints, pushed as a run does."""

    def __init__(self, one):
        self.mirror = one
        self.log = RunLog(one.folder / RUN)
        self.store = CheckpointStore(one.folder / RUN / "checkpoints", resume=True)
        self.store.after_save = lambda: one.push([RUN])

    def run(self, last, kept=2, every=2):
        self.mirror.pull()
        start = self.store.begin()
        if start is not None:
            self.log.resume(start.position)
        first = 0 if start is None else start.state.iteration + 1
        for i in range(first, last + 1):
            metrics, samples = {"m": i / 3}, ({"response": str(i)},)
            self.log.append(SimpleNamespace(iteration=i, metrics=metrics, timing={}, samples=samples))
            if i % 2:  # else they go with what counts on them
                self.mirror.push([RUN], only_grown=True)
            if i % every == 0:
                state = TrainingState(i, {"policy": {"w": torch.full((2,), float(i))}}, {})
                self.store.save(Checkpoint(state, self.log.position()), kept)
        for name in ("responses.jsonl", "run.json", "tables.json"):
            (self.mirror.folder / RUN / name).write_text(str(last))
        self.mirror.push([RUN])
        return first


class Cut(Exception):
    """The machine is gone."""


def cut_after(monkeypatch, count):
    """Let a machine be gone with the operation ``count`` of the store, which is not done; how many were done."""
    done = itertools.count()
    for verb in ("send", "remove"):
        real = getattr(Bucket, verb)

        def counted(self, *words, verb=verb, real=real):
            if verb == "send" and next(done) >= count:
                raise Cut
            if verb == "remove":
                for name in words[0]:
                    if next(done) >= count:
                        raise Cut
                    real(self, [name])
                return None
            return real(self, *words)

        monkeypatch.setattr(Bucket, verb, counted)


@pytest.mark.parametrize("earlier", [False, True])
def test_a_run_cut_off_at_any_moment_goes_on_elsewhere_to_the_same_bytes(tmp_path, monkeypatch, earlier):
    """``earlier``: on top of another training in the same place, which it replaces."""
    monkeypatch.setattr(run_log, "time", SimpleNamespace(time_ns=lambda: 0))
    monkeypatch.setattr(os, "fsync", lambda number: None)  # no power is cut

    def begun(count):
        place = f"local://{tmp_path}/{earlier}-{count}"
        one = Mirror(place, tmp_path / f"here-{earlier}-{count}")
        if earlier:
            Training(one).run(5)
            discard(one.folder / RUN / "checkpoints")  # as a start with overwrite=true sets them aside
            (one.folder / RUN / "run.json").write_text("running")
        return place, one

    place, one = begun("whole")
    one.push([RUN])
    Training(one).run(4, kept=1)
    expected = tree(one)
    firsts = set()
    for count in range(200):
        place, one = begun(count)
        with monkeypatch.context() as patch:
            cut_after(patch, count)
            try:
                one.push([RUN])
                Training(one).run(4, kept=1)
                break
            except Cut:
                pass
        there = Mirror(place, tmp_path / f"there-{earlier}-{count}")
        there.pull()
        said = tree(there).get(f"{RUN}/run.json")
        if earlier and said == b"5":
            continue  # nothing of the new one is there yet: the old one is whole
        if said == b"4":  # what says that it is finished came last
            assert tree(there).items() >= expected.items()
        firsts.add(Training(there).run(4, kept=1))
        # an old checkpoint that was about to be removed goes with the next one that is saved
        found = {name: one for name, one in tree(there).items() if not name.split("checkpoints")[-1].startswith(OLD)}
        assert found == expected, count
        again = Mirror(place, tmp_path / f"third-{earlier}-{count}")
        again.pull()
        assert tree(again) == tree(there)
    assert firsts >= {0, 1, 3, 5} and count > 15


def test_a_checkpoint_is_gone_only_when_a_later_one_is_whole(tmp_path, monkeypatch):
    """At every operation there is a whole checkpoint, once there was one, and lines enough for it."""
    one = Mirror(f"local://{tmp_path}/store", tmp_path / "here")
    seen = []

    def look():
        other = Mirror(f"local://{tmp_path}/store", tmp_path / f"look-{len(seen)}")
        other.pull()
        found = CheckpointStore(other.folder / RUN / "checkpoints", resume=True).begin()
        if found is not None:
            RunLog(other.folder / RUN).resume(found.position)
        seen.append(-1 if found is None else found.state.iteration)

    for verb in ("send", "remove"):
        real = getattr(Bucket, verb)

        def watched(self, *words, real=real):
            result = real(self, *words)
            look()
            return result

        monkeypatch.setattr(Bucket, verb, watched)
    Training(one).run(8, kept=1)
    assert seen == sorted(seen) and set(seen) == {-1, 0, 2, 4, 6, 8}


def test_a_store_that_is_away_costs_nothing_here(machine, monkeypatch):
    here = machine("here")
    put(here, "a/b", b"1")
    with monkeypatch.context() as patch:
        patch.setattr(here.bucket._fs, "put_file", lambda *words, **more: (_ for _ in ()).throw(OSError("away")))
        with pytest.raises(Unreachable, match="away"):
            push(here)
    push(here)
    assert here.bucket.read("a/b") == b"1"


def test_every_kind_of_line_file_is_pushed_between_checkpoints():
    assert all(Path(f"{kind}.jsonl").suffix in names.LINES for kind in KINDS)
