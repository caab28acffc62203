"""``kedro study --engine slurm``: what is refused, what the queue says, and a real SLURM where there is one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from planted import holding

from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import Record
from gemma_alignment.parameters.cluster import ClusterParameters, SlurmParameters
from gemma_alignment.study import remote, slurm_jobs
from gemma_alignment.study.engine import Site
from gemma_alignment.study.lock import alone
from gemma_alignment.study.machine import Outcome, Premises
from gemma_alignment.study.plan import Plan, Run
from gemma_alignment.study.processes import Child, stop
from gemma_alignment.study.slurm import Slurm, check, exchange, flags, name_of
from gemma_alignment.study.slurm_jobs import Job, Queue, Queued

SETTINGS = ClusterParameters(1, 0, None, 3, SlurmParameters(60, None, None, None, ()))
ASKED = ClusterParameters(4, 2, 1.5, 3, SlurmParameters(30, "gpu", "me", "high", ()))
COMMANDS = ("sbatch", "srun", "squeue", "scancel")


def test_jobs_are_handed_over_in_a_folder_that_every_machine_sees(tmp_path):
    assert exchange(Site(tmp_path, tmp_path / "data", "cpu", 1)) == tmp_path / "data" / "slurm"
    bucket = Site(tmp_path, tmp_path / "cache" / "copy", "cpu", 1, 1, "s3://bucket/a", "mark")
    assert exchange(bucket) == tmp_path / "slurm" / "copy"


def test_slurm_counts_the_times_that_were_up_and_queues_again_whatever_it_loses(tmp_path, monkeypatch):
    asked = {}

    def executor(folder, **words):
        asked.update(words)
        return SimpleNamespace(update_parameters=lambda **more: asked.update(more))

    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(SlurmExecutor=executor))
    Slurm(Site(tmp_path, tmp_path / "data", "cpu", 1), SETTINGS)._executor("study")
    assert (asked["max_num_timeout"], asked["additional_parameters"]) == (SETTINGS.retries, {"requeue": True})


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """``commands(sbatch="exit 1")``: shell scripts in the place of SLURM's commands; None: it is not there."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace())

    def write(**scripts):
        for name, script in {**dict.fromkeys(COMMANDS, "exit 0"), **scripts}.items():
            (folder / name).unlink(missing_ok=True)
            if script is not None:
                (folder / name).write_text(f"#!/bin/sh\n{script}\n")
                (folder / name).chmod(0o755)

    return write


def test_without_the_extra_the_error_names_it(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'gemma_alignment\[slurm\]'"):
        check(SETTINGS, tmp_path)


@pytest.mark.parametrize("name", COMMANDS)
def test_off_the_cluster_the_error_names_the_command_that_is_not_there(commands, tmp_path, name):
    commands(**{name: None})
    with pytest.raises(UserError, match=f"there is no {name} here; start the study on a machine of the cluster"):
        check(SETTINGS, tmp_path)


def test_more_than_the_cluster_has_is_refused_in_its_own_words(commands, tmp_path):
    commands(sbatch=f'echo "$@" > {tmp_path}/asked; echo "allocation failure: not available" >&2; exit 1')
    with pytest.raises(UserError, match=r"SLURM refuses \(sbatch\): allocation failure: not available\nSee study.clu"):
        check(ASKED, tmp_path)
    words = (tmp_path / "asked").read_text().split()
    assert words == [
        "--test-only", "--time=30", "--cpus-per-task=4", "--gpus-per-node=2", "--mem=1536MB", "--partition=gpu",
        "--account=me", "--qos=high", "--wrap=true",
    ]  # fmt: skip


def test_a_controller_that_does_not_answer_is_one_message(commands, tmp_path):
    commands(squeue='echo "slurm_load_jobs error: Unable to contact slurm controller" >&2; exit 1')
    with pytest.raises(UserError, match=r"SLURM refuses \(squeue\): slurm_load_jobs error: Unable to contact"):
        check(SETTINGS, tmp_path)


def test_jobs_of_an_earlier_study_in_the_folder_are_named(commands, tmp_path):
    commands(squeue='printf "7_0|RUNNING|node1\\n7_1|PENDING|\\n6|COMPLETED|node2\\n"')
    with pytest.raises(UserError, match=r": 7_0, 7_1\. Go on with them by --resume .*, wait .* by: scancel 7$"):
        check(SETTINGS, tmp_path)
    commands(squeue='printf "7_0|CANCELLED|\\n7_1|FAILED|\\n6|COMPLETED|\\n"')
    assert check(SETTINGS, tmp_path) == []


@pytest.fixture
def left(commands, tmp_path, monkeypatch):
    """``left(job=run, …)``: those of an earlier study that SLURM still has, as a resumed study finds them."""
    data = tmp_path / "data"

    def find(**runs):
        commands(squeue=f"printf '{''.join(f'{job[1:]}|RUNNING|node1%sn' % chr(92) for job in runs)}'")
        premises = Premises.here(site(tmp_path), "submitit")

        def handle(folder, job):
            assert folder == data / "slurm"
            def submission():
                attempt = SimpleNamespace(run=runs[f"_{job}"], premises=premises)
                return SimpleNamespace(function=SimpleNamespace(attempt=attempt))

            return SimpleNamespace(
                job_id=job, paths=SimpleNamespace(result_pickle=tmp_path / "absent"), submission=submission
            )

        monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(SlurmJob=handle))
        return check(SETTINGS, data, resume=True)

    with alone(data):
        yield find


def site(tmp_path):
    return Site(tmp_path, tmp_path / "data", "cpu", 1)


def test_a_resumed_study_waits_for_the_jobs_of_the_earlier_one(left, tmp_path):
    plan = Plan(("grpo", "ppo"), (1,), {"overwrite": False}, "test")
    grpo, ppo = plan.arms
    engine = Slurm(site(tmp_path), SETTINGS, left(_7_0=grpo, _7_1=ppo))
    engine.check(plan)  # nothing is submitted to look around: jobs are at work already
    assert (engine.has(grpo), engine.has(ppo), engine.has(plan.preparation)) == (True, True, False)
    resumed = Run(ppo.pipelines, {**ppo.params, "resume": True}, "test")
    child = Child(resumed, tmp_path / "run.log")
    assert next(engine.drive([child], None, {})) is None
    assert (child.process.handle.job_id, child.state) == ("7_1", "running")


def test_what_is_left_of_the_preparation_is_waited_for_in_the_job_of_all_of_it(left, tmp_path):
    plan = Plan(("grpo",), (1,), {}, "test")
    engine = Slurm(site(tmp_path), SETTINGS, left(_8=plan.preparation))
    assert engine.has(Run(plan.preparation.pipelines[1:], {"resume": True}, "test"))
    assert not engine.has(Run(plan.preparation.pipelines[1:], {"resume": True, "reward_model.epochs": 2}, "test"))
    assert not engine.has(Run(plan.preparation.pipelines[1:], {}, None))


def test_a_job_that_does_something_else_is_named(left, tmp_path):
    plan = Plan(("grpo",), (1,), {}, "test")
    jobs = left(_7_0=plan.arms[0], _7_1=Run(("grpo",), {"seed": 2}, "test"))
    with pytest.raises(UserError, match=r"job 7_1 of an earlier .*\(grpo-seed2\) does something .*: scancel 7$"):
        Slurm(site(tmp_path), SETTINGS, jobs).check(plan)


def test_a_job_of_other_versions_is_named(left, tmp_path, monkeypatch):
    plan = Plan(("grpo",), (1,), {}, "test")
    jobs = left(_7_0=plan.arms[0])
    monkeypatch.setattr("gemma_alignment.study.machine._version", lambda name: "0")
    with pytest.raises(UserError, match=r"job 7_0 of .* or with other versions: .*: scancel 7$"):
        Slurm(site(tmp_path), SETTINGS, jobs).check(plan)


def test_a_job_of_which_nothing_can_be_read_is_named(left, tmp_path, commands):
    left(_7_0=None)
    commands(squeue="printf '9|PENDING|\\n'")
    with pytest.raises(UserError, match=r"what job 9 of an earlier study does cannot be read \(KeyError.*: scancel 9$"):
        check(SETTINGS, tmp_path / "data", resume=True)


def test_what_is_not_asked_for_is_left_to_the_cluster():
    assert flags(SETTINGS) == {"time": 60, "cpus_per_task": 1}


def test_the_jobs_of_one_folder_have_one_name(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").symlink_to(tmp_path / "a")
    assert name_of(tmp_path / "a") == name_of(tmp_path / "b") != name_of(tmp_path)


def test_the_jobs_of_one_bucket_have_one_name_on_every_machine(commands, tmp_path):
    sites = [Site(tmp_path, tmp_path / host, "cpu", 1, 1, "s3://bucket/a", "mark") for host in ("login1", "login2")]
    first, second = (Slurm(one, SETTINGS).name for one in sites)
    assert first == second == name_of(tmp_path, "s3://bucket/a") != name_of(tmp_path, "s3://bucket/b")
    commands(squeue=f'case "$*" in *{first}*) echo "7|RUNNING|node1";; esac')
    for one in sites:
        with pytest.raises(UserError, match=r"jobs of an earlier study in s3://bucket/a are still .*: 7\."):
            check(SETTINGS, one.data_root, bucket=one.address)


class FakeQueue:
    def __init__(self, *states):
        self.states = list(states)
        self.nodes = {"7_0": "node1"}

    def state(self, job):
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]


@pytest.fixture
def clock(monkeypatch):
    """``clock.now``, which stands still."""
    fake = SimpleNamespace(now=100.0, monotonic=lambda: fake.now, sleep=lambda seconds: None)
    monkeypatch.setattr(slurm_jobs, "time", fake)
    monkeypatch.setattr(remote, "time", fake)
    return fake


def job(tmp_path, *states, result=None):
    (tmp_path / "result").unlink(missing_ok=True)
    if result is not None:
        (tmp_path / "result").touch()
    handle = SimpleNamespace(
        job_id="7_0", paths=SimpleNamespace(result_pickle=tmp_path / "result"), result=lambda: result,
        stderr=lambda: None, stdout=lambda: "one\nslurmstepd: error: Exceeded job memory limit\n",
    )  # fmt: skip
    return Job(SimpleNamespace(), handle, FakeQueue(*states))


@pytest.mark.parametrize(("state", "waits"), [("PENDING", True), ("CONFIGURING", True), ("RUNNING", False)])
def test_a_job_waits_until_it_has_a_place(tmp_path, clock, state, waits):
    one = job(tmp_path, state)
    assert (one.is_waiting, one.poll()) == (waits, None)


def test_the_status_of_a_job_is_that_of_its_run(tmp_path, clock):
    one = job(tmp_path, "COMPLETED", result=(3, None))
    assert (one.poll(), one.wait(), one.word) == (3, 3, None)
    one = job(tmp_path, "COMPLETED", result=(1, "other versions"))
    assert (one.poll(), one.word) == (1, "other versions")


def test_what_a_job_raised_is_said_in_its_own_words(tmp_path, clock):
    def result():
        raise RuntimeError(
            "Job (task=0) failed during processing with trace:\n------\nTraceback (most recent call last):\n"
            "ModuleNotFoundError: No module named 'peft'\n\n------\nYou can check full logs with ...\n  - 7_0_log.out"
        )

    one = job(tmp_path, "FAILED", result=True)
    one.handle.result = result
    assert one.poll() == 1 and one.word == "job 7_0 on node1: ModuleNotFoundError: No module named 'peft'"


@pytest.mark.parametrize("state", ["OUT_OF_MEMORY", "FAILED", None])
def test_a_job_that_left_no_result_is_over_only_after_a_while(tmp_path, clock, state):
    one = job(tmp_path, state)
    assert one.poll() is None
    clock.now += slurm_jobs.SETTLED - 1
    assert one.poll() is None
    clock.now += 1
    assert one.poll() == 1
    assert one.word == (
        f"job 7_0 on node1 left no result: SLURM says {state or 'nothing of it any more'} "
        "(slurmstepd: error: Exceeded job memory limit)"
    )


def test_a_job_that_is_queued_again_is_not_over(tmp_path, clock):
    one = job(tmp_path, "PREEMPTED", "PENDING", "PREEMPTED")
    assert one.poll() is None
    clock.now += slurm_jobs.SETTLED + 1
    assert one.poll() is None  # queued again meanwhile
    assert one.poll() is None  # and over again, from now on
    clock.now += slurm_jobs.SETTLED
    assert one.poll() == 1


def test_what_the_study_takes_away_is_over_at_once(tmp_path, clock, commands):
    commands(scancel=f'echo "$@" >> {tmp_path}/said')
    one = job(tmp_path, "RUNNING", "CANCELLED")
    one.signal(signal.SIGTERM)
    one.signal(signal.SIGKILL)  # it is over: nothing is sent
    assert one.poll() == 1
    assert (tmp_path / "said").read_text() == "7_0\n"
    another = job(tmp_path, "RUNNING")
    another.signal(signal.SIGKILL)
    assert (tmp_path / "said").read_text() == "7_0\n--signal=KILL --full 7_0\n"


def test_a_job_that_slurm_does_not_take_away_is_not_waited_for_for_ever(tmp_path, clock, commands):
    commands()
    one = job(tmp_path, "RUNNING")
    one.signal(signal.SIGKILL)
    clock.sleep = lambda seconds: setattr(clock, "now", clock.now + seconds)
    assert one.wait() == 1
    assert clock.now == 100 + remote.GRACE
    assert one.word == "job 7_0 may still run: SLURM did not take it away"


def test_a_silent_controller_is_waited_for(commands, clock, caplog):
    commands(squeue='printf "7_0|RUNNING|\\n"')
    queue = Queue("study")
    assert (queue.state("7_0"), queue.state("8")) == ("RUNNING", None)
    commands(squeue="exit 1")
    assert queue.state("7_0") == "RUNNING"
    for _ in range(3):
        clock.now += slurm_jobs.LOOK
        assert queue.state("7_0") == "RUNNING"
    assert [record.message for record in caplog.records] == [
        "SLURM refuses (squeue): exit status 1\nSee study.cluster in the parameters. The study waits for it; jobs go "
        "on meanwhile."
    ]
    commands(squeue='printf "7_0|COMPLETED|\\n"')
    clock.now += slurm_jobs.LOOK
    assert queue.state("7_0") == "COMPLETED"


@pytest.mark.parametrize("code", [128 + signal.SIGTERM, 128 + signal.SIGINT])
def test_an_attempt_that_is_taken_away_leaves_no_result(monkeypatch, code):
    ended = []
    monkeypatch.setattr(slurm_jobs.os, "_exit", ended.append)
    Queued(lambda: Outcome(code))()
    assert ended == [code]
    assert Queued(lambda: Outcome(1))() == Outcome(1) and ended == [code]


def _has_slurm():
    if shutil.which("sinfo") is None:
        return False
    found = subprocess.run(["sinfo", "--noheader", "--format=%T"], capture_output=True, text=True, check=False)
    return found.returncode == 0 and any(state in found.stdout for state in ("idle", "mixed"))


real = pytest.mark.skipif(not _has_slurm(), reason="no SLURM with a free node answers here")


@pytest.fixture
def cluster(project):
    """The small project, prepared, on a machine with a SLURM; what is left in the queue is taken away."""
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    project.run("data_processing", "sft", "reward_model")
    yield project
    subprocess.run(["scancel", f"--name={name_of(project.data)}"], capture_output=True, check=False)


def bytes_of(project, seed):
    names = ("history.jsonl", "responses.jsonl", "samples.jsonl")
    return {
        f"{method}/{name}": (project.data / f"07_model_output/{method}/seed={seed}/{name}").read_bytes()
        for method in ("ppo", "grpo")
        for name in names
    }


@real
@pytest.mark.cli
@pytest.mark.pipeline
def test_a_study_on_slurm_leaves_what_a_study_here_does(cluster):
    words, key = ("kedro", "study", "--env=test", "--seeds=1", "--engine=slurm"), "sk-planted-on-a-cluster-0123"
    code, said = cluster.command(*words, timeout=600, OPENAI_API_KEY=key)
    assert code == 0, said
    assert key not in said and holding(cluster.root, [key]) == []
    assert "finished: 3 processes done, 0 failed" in said and "MLflow's store is a file" in said
    states = cluster.states()
    assert set(states.values()) == {"FINISHED"} and {"ppo-seed1", "grpo-seed1", "reporting"} <= set(states)
    on_slurm = bytes_of(cluster, 1)
    assert (cluster.data / "07_model_output/grpo/seed=1/run.log").stat().st_size > 0
    for method in ("ppo", "grpo"):
        cluster.run(method, seed=1, overwrite=True)
    assert bytes_of(cluster, 1) == on_slurm


@real
@pytest.mark.cli
@pytest.mark.pipeline
@pytest.mark.slow
def test_a_study_that_is_shot_goes_on_with_its_jobs(cluster, monkeypatch):
    """One at work and one that waits for a place: neither is started twice, and neither is lost."""
    monkeypatch.setenv("SMALL_HANG", "ppo:1")
    monkeypatch.setenv("SMALL_HANG_S", "60")
    words = ("kedro", "study", "--env=test", "--seeds=1", "--engine=slurm", "--workers=1")
    process = cluster.start(*words)
    history = cluster.data / "07_model_output/ppo/seed=1/history.jsonl"
    while not (history.exists() and history.read_text().count("\n") == 2):
        assert process.poll() is None, process.communicate(timeout=60)
        time.sleep(0.2)
    first = cluster.record("ppo/seed=1")
    process.kill()
    process.wait()
    code, said = cluster.command(*words, timeout=600)
    assert code == 1 and "are still with SLURM" in said and "Go on with them by --resume" in said
    code, said = cluster.command(*words, "--resume", timeout=600)
    assert code == 0, said
    assert "finished: 3 processes done, 0 failed" in said
    record = cluster.record("ppo/seed=1")
    assert (record.status, record.pid, record.mlflow_run_id) == ("finished", first.pid, first.mlflow_run_id)
    states = cluster.states()
    assert set(states.values()) == {"FINISHED"} and [name[:6] for name in states].count("study-") == 1
    on_slurm = bytes_of(cluster, 1)
    monkeypatch.delenv("SMALL_HANG")
    for method in ("ppo", "grpo"):
        cluster.run(method, seed=1, overwrite=True)
    assert bytes_of(cluster, 1) == on_slurm


@real
def test_a_machine_that_slurm_gives_and_that_lacks_something_is_named(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    there, plan = tmp_path / "pyproject.toml", Plan(("grpo",), (1,), {}, "test")
    there.touch()
    with alone(tmp_path / "data"):
        engine = Slurm(site(tmp_path), SETTINGS)
        engine.check(plan)
        assert not list((tmp_path / "data").glob(".probe-*"))
        there.unlink()
        with pytest.raises(UserError, match=r"was not started; .*\n  .*: the project's folder .* is not there"):
            engine.check(plan)
        there.touch()
        (tmp_path / "gemma_alignment").mkdir()
        (tmp_path / "gemma_alignment" / "__init__.py").write_text("import no_such_package")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        with pytest.raises(UserError, match=r"  job \d+.*No module named 'no_such_package'"):
            engine.check(plan)


STAND_IN = """
import dataclasses, os, signal, sys, time
from pathlib import Path
sys.path.pop(0)
del sys.modules["kedro"]  # from here on it is the real one
from gemma_alignment.fingerprints import Record

folder = Path(os.environ["STAND_IN"])
seen = folder / "arguments"
with seen.open("a") as file:
    file.write(" ".join(sys.argv[1:]) + chr(10))
record = Record(stage="grpo", seed=1, variant="", fingerprints={}, parameters={})
record.write(folder)
again = "resume=true" in sys.argv[-1]
def end(number, frame):
    record.end("killed").write(folder)
    sys.exit(128 + number)
signal.signal(signal.SIGTERM, end)
(folder / "ready").touch()
time.sleep(0 if again else 900)
record.end("finished").write(folder)
"""
"""In the place of Kedro: a run that waits, and does not once it is resumed."""


@pytest.fixture
def handed_over(tmp_path, monkeypatch):
    """A run that waits as a job of SLURM; what drives it, its child and its folder."""
    pytest.importorskip("submitit", reason="the extra slurm is not installed")
    project, data = tmp_path / "project", tmp_path / "data"
    (project / "kedro").mkdir(parents=True)
    (project / "pyproject.toml").touch()
    (project / "kedro" / "__init__.py").touch()
    (project / "kedro" / "__main__.py").write_text(STAND_IN)
    run = Run(("grpo",), {"seed": 1})
    folder = run.stages[0].directory(data)
    folder.mkdir(parents=True)
    child = Child(run, folder / "run.log")
    variables = {**os.environ, "STAND_IN": str(folder)}
    with alone(data):
        check(SETTINGS, data)
        driven = Slurm(Site(project, data, "cpu", 1), SETTINGS).drive([child], None, variables)
        next(driven)
        yield driven, child, folder
    subprocess.run(["scancel", f"--name={name_of(data)}"], capture_output=True, check=False)


def drive_until(driven, there):
    """Go on with the study's loop, as the study does, until something is there."""
    for _ in driven:
        if there():
            return
    assert there()


@real
@pytest.mark.parametrize("taken", [("scontrol", "requeue"), ("scancel", "--signal=USR2")], ids=["preempted", "time"])
def test_a_job_that_is_taken_away_and_queued_again_goes_on(handed_over, taken):
    """By SLURM itself, as on pre-emption, and with the signal that warns of the end of a job's time."""
    driven, child, folder = handed_over
    assert child.state in ("waiting", "running")
    drive_until(driven, lambda: (folder / "ready").exists() and child.state == "running")  # the queue is a look behind
    first = Record.read(folder)
    assert child.wrote(first)
    subprocess.run([*taken, child.process.handle.job_id], check=True)
    assert [one for one in driven if one is not None] == [child]
    assert (child.state, child.code) == ("done", 0), child.process.word
    record = Record.read(folder)
    assert record.status == "finished" and record.pid != first.pid and child.wrote(record)
    assert (folder / "arguments").read_text().splitlines() == [
        "run --pipelines=grpo --params seed=1", "run --pipelines=grpo --params seed=1,overwrite=false,resume=true",
    ]  # fmt: skip


@real
def test_a_study_that_stops_takes_its_jobs_away(handed_over):
    driven, child, folder = handed_over
    drive_until(driven, (folder / "ready").exists)
    stop([child])
    assert child.state == "failed"
    assert Record.read(folder).status == "killed"
    assert check(SETTINGS, folder.parents[2]) == []  # nothing of it is left in the queue
