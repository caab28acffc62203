"""Kill a study again and again at moments drawn from a seed, resume it, and compare it with one never killed.

``make soak`` runs it. The commands are the real ones; to spare the seconds that libraries take to load, every
process is forked from one that has loaded them, instead of started anew. SIGKILL, files and store are real.
"""

import argparse
import atexit
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).parents[1]
QUIET = {
    "OMP_NUM_THREADS": "1", "DO_NOT_TRACK": "true", "MLFLOW_DISABLE_TELEMETRY": "true", "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false",
}  # fmt: skip
TIMED = ("rollout/tokens_per_second", "budget/seconds", "memory/", "system/")
"""How keys begin that the clock or the memory has a part in."""
CLOSING = ("evaluation", "reporting")
"""Runs that are made anew where an arm has come since."""
ORPHANED = 0.3
"""Part of the kills that hit one process of the study alone; the others hit all of them at once."""


def say(text: str) -> None:
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {text}\n")
    sys.stdout.flush()


class Forked:
    """Stands in for ``subprocess.Popen`` of a Kedro command: the same words, folder, variables and output."""

    def __init__(self, words: list[str], cwd: Path, env: dict[str, str], stdout: Any, **_: Any) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            _become(words[words.index("kedro") :], cwd, env, stdout.fileno())

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        while self.poll() is None:
            time.sleep(0.02)
        return self.returncode or 0


FORKING: Any = SimpleNamespace(Popen=Forked, DEVNULL=subprocess.DEVNULL, STDOUT=subprocess.STDOUT)
"""What the study knows of ``subprocess``."""


def _become(words: list[str], cwd: Path, env: dict[str, str], output: int) -> None:
    """Be the process of a Kedro command, and end as one."""
    code = 1
    try:
        os.setsid()
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))  # pytest has its own
        os.chdir(cwd)
        os.environ.update(env)
        _forget_stores()
        sys.argv = words
        from kedro.framework.cli import main

        from gemma_alignment.study import processes, warm

        processes.subprocess = FORKING  # type: ignore[assignment]
        warm.adopt = lambda orphans: False  # everything is loaded here already
        main()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _forget_stores() -> None:
    """A database connection must not be used on both sides of a fork."""
    import mlflow
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from mlflow.tracking._tracking_service import utils

    for engine in SqlAlchemyStore._engine_map.values():
        engine.dispose(close=False)
    SqlAlchemyStore._engine_map.clear()
    utils._tracking_store_registry._get_store_with_resolved_uri.cache_clear()
    mlflow.set_tracking_uri(None)


class Study:
    """A copy of the project in a folder of its own, and its study in the environment ``env``."""

    def __init__(self, folder: Path, words: list[str], env: str, store: Path) -> None:
        (folder / "src").mkdir(parents=True)
        for name in ("pyproject.toml", "conf", "src/gemma_alignment"):
            (folder / name).symlink_to(ROOT / name)
        shutil.copy(store, folder / "mlflow.db")
        self.folder, self._words, self.data = folder, [f"--env={env}", *words], folder / data_root(env)
        self.tries = 0
        self.known: dict[str, str] = {}
        """The MLflow run of each stage as its record named it first; evaluation and report may be made anew."""
        self._rests: set[Path] = set()

    def start(self) -> Forked:
        self.tries += 1
        self._rests = set(self.data.rglob(".*.new*"))
        words = ["kedro", "study", *self._words, *(["--resume"] if self.tries > 1 else [])]
        with (self.folder / "study.log").open("ab") as output:
            return Forked(words, self.folder, {**QUIET, "COLUMNS": "120"}, output)

    def being_written(self) -> Path | None:
        """What a process of this attempt writes just now; what those before left lies about too."""
        return next((path for path in self.data.rglob(".*.new*") if path not in self._rests), None)

    def note_runs(self) -> None:
        """Remember the MLflow runs that the records name, and see that they are those of the attempts before."""
        for path in self.data.rglob("run.json"):
            stage, run_id = str(path.parent.relative_to(self.data)), json.loads(path.read_text())["mlflow_run_id"]
            if path.parent.name not in CLOSING and self.known.setdefault(stage, run_id) != run_id:
                raise AssertionError(f"{stage} went on in another MLflow run: {self.known[stage]}, now {run_id}")

    def left(self) -> dict[str, Any]:
        """What must be equal: files, and every point in MLflow but those of the clock."""
        found: dict[str, Any] = {
            str(path.relative_to(self.data)): path.read_bytes()
            for pattern in ("06_models/**/*.safetensors", "06_models/**/normalizer.json", "07_model_output/**/*.jsonl")
            for path in self.data.glob(pattern)
            if path.name != "timing.jsonl" and "checkpoints" not in path.parts
        }
        if not found:
            raise AssertionError(f"the study left nothing in {self.data}")
        return found | self._points()

    def _points(self) -> dict[str, Any]:
        from mlflow import MlflowClient

        client = MlflowClient(f"sqlite:///{self.folder / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("gemma-alignment")
        runs = {run.info.run_id: run for run in client.search_runs([experiment.experiment_id])}
        points = {
            run_id: [(key, p.step, p.value) for key in run.data.metrics for p in client.get_metric_history(run_id, key)]
            for run_id, run in runs.items()
        }
        recorded = {json.loads(path.read_text())["mlflow_run_id"] for path in self.data.rglob("run.json")}
        found: dict[str, Any] = {}
        for run_id, run in runs.items():
            name = "study" if run.info.run_name.startswith("study-") else run.info.run_name
            if run_id not in recorded and name != "study" and not points[run_id]:
                continue  # opened, and killed before it was written down; it holds nothing
            if run_id not in recorded and name in CLOSING and run.info.status == "FINISHED":
                continue  # of the report on the arms that were left, before the killed one was resumed
            doubled = [key for key, n in Counter((key, step) for key, step, _ in points[run_id]).items() if n > 1]
            if doubled or name in found or run.info.status != "FINISHED":
                raise AssertionError(f"MLflow run {name}: {run.info.status}, doubled {doubled}, known {name in found}")
            found[name] = sorted(point for point in points[run_id] if not point[0].startswith(TIMED))
        return found


def data_root(env: str) -> str:
    """The data folder of an environment."""
    import yaml

    given = (ROOT / "conf" / one / "globals.yml" for one in (env, "base"))
    found = (yaml.safe_load(path.read_text()).get("data_root") for path in given if path.is_file())
    return str(next(folder for folder in found if folder))


def descendants(pid: int) -> list[int]:
    """The processes under one, by their parents' numbers."""
    parents = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError):
            continue
    found = [pid]
    for known in found:
        found += [child for child, parent in parents.items() if parent == known]
    return found[1:]


def kill(process: Forked, alone: bool, chance: random.Random) -> str:
    """SIGKILL: one process of the study, or the study and all of its processes."""
    os.kill(process.pid, signal.SIGSTOP)  # or it would start another one in between
    below = descendants(process.pid)
    if alone and below:
        victims = [chance.choice(below)]
    else:
        victims = [*below, process.pid]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    os.kill(process.pid, signal.SIGCONT) if process.pid not in victims else None
    process.wait()
    return f"{len(victims)} of {len(below) + 1} processes"


def shoot(study: Study, process: Forked, seconds: float, in_a_write: bool, alone: bool, chance: random.Random) -> str:
    """Kill after ``seconds``, or in the first write that follows; what happened, or nothing if the study was over."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if process.poll() is not None:
            return ""
        time.sleep(0.01)
    where = "at a moment"
    deadline = time.monotonic() + 20
    while in_a_write and time.monotonic() < deadline:
        if process.poll() is not None:
            return ""
        if new := study.being_written():
            where = f"while writing {new.relative_to(study.data).parts[-1]}"
            break
    return f"{where}, {kill(process, alone, chance)}"


def soak(kills: int, seed: int, words: list[str], env: str, within: float, folder: Path) -> int:
    """``kills`` SIGKILLs over as many studies as that takes; the number of studies, all equal to the reference.

    Each comes within that part of the time that the reference took.
    """
    from mlflow import MlflowClient

    _preload()
    store = folder / "empty.db"
    MlflowClient(f"sqlite:///{store}").search_experiments()
    _forget_stores()
    begun = time.monotonic()
    reference = Study(folder / "reference", words, env, store)
    if reference.start().wait():
        raise AssertionError((reference.folder / "study.log").read_text()[-3000:])
    whole = time.monotonic() - begun
    expected = reference.left()
    _forget_stores()
    say(f"never killed: {whole:.0f} s, {len(expected)} files and runs to compare")
    chance = random.Random(seed)
    done = finished = 0
    study: Study | None = None
    while done < kills or study is not None:
        if study is None:
            study = Study(folder / f"study{finished + 1}", words, env, store)
        process = study.start()
        shot = ""
        if done < kills:
            draws = chance.uniform(0, whole * within), chance.random() < 0.5, chance.random() < ORPHANED
            shot = shoot(study, process, *draws, chance)
        if shot:
            done += 1
            say(f"kill {done}: study {finished + 1}, attempt {study.tries}, {shot}")
            study.note_runs()
            continue
        if code := process.wait():
            raise AssertionError(f"study {finished + 1}: {code}\n{(study.folder / 'study.log').read_text()[-3000:]}")
        study.note_runs()
        found = study.left()
        _forget_stores()
        different = sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key))
        if different:
            raise AssertionError(f"study {finished + 1} in {study.folder} differs: {different}")
        finished += 1
        say(f"study {finished}: finished after {study.tries} attempts, equal to the one that was never killed")
        shutil.rmtree(study.folder)
        study = None
    return finished


def _preload() -> None:
    """What every process would load."""
    import bitsandbytes  # noqa: F401
    import kedro_mlflow.framework.hooks.mlflow_hook  # noqa: F401
    import peft  # noqa: F401
    import scipy.stats  # noqa: F401
    import torch
    import transformers
    from kedro.framework.cli import main  # noqa: F401

    torch.set_num_threads(1)
    assert transformers.GemmaForCausalLM and transformers.AutoTokenizer  # loaded when they are looked up


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--env", default="test")
    parser.add_argument("--within", type=float, default=0.8, help="part of a study's time in which a kill comes")
    parser.add_argument("--folder", type=Path, help="where to work; kept")
    arguments, rest = parser.parse_known_args()
    os.environ.update(QUIET)
    os.environ.pop("MLFLOW_TRACKING_URI", None)
    folder = arguments.folder or Path(mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    words = rest or ["--seeds=42"]
    finished = soak(arguments.kills, arguments.seed, words, arguments.env, arguments.within, folder)
    say(f"{arguments.kills} kills, {finished} studies finished, all equal to the one that was never killed")
    if arguments.folder is None:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
