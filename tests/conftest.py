"""What every test starts from: one thread, no telemetry, nothing left in the user's MLflow store."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, or it is not read
os.environ.setdefault("DO_NOT_TRACK", "true")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import ports
import pytest
from hypothesis import Phase, settings

settings.register_profile("first_failure", derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))
"""For mutation tests: the same examples each time, and a failing one is not made smaller."""

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory):
    """An MLflow database with its tables: making them takes seconds, copying does not."""
    from mlflow import MlflowClient

    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def project(tmp_path, empty_store, monkeypatch):
    """A copy of the small project with the configuration of the real one, as the current folder."""
    root = tmp_path / "project"
    shutil.copytree(ROOT / "tests" / "small_project", root)
    shutil.copytree(ROOT / "conf", root / "conf", ignore=shutil.ignore_patterns("local"))
    (root / "conf" / "local").mkdir()
    shutil.copy(empty_store, root / "mlflow.db")
    for name in ("MLFLOW_TRACKING_URI", "GEMMA_ALIGNMENT_PARENT_RUN", "GEMMA_ALIGNMENT_STUDY", "KEDRO_ENV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", "false")  # their first sample comes after ten seconds
    monkeypatch.chdir(root)
    from kedro.framework.startup import bootstrap_project

    bootstrap_project(root)  # the first time it sets up logging anew, and what captures it in a test is gone
    return Project(root)


def whole_project(root):
    """A copy of the real project, without anything that a study of the surroundings would hand on to it."""
    for name in ("conf", "notebooks", "docs"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("local"))
    (root / "conf" / "local").mkdir()
    for name in ("pyproject.toml", ".telemetry", "Makefile"):
        shutil.copy(ROOT / name, root / name)
    shutil.copytree(ROOT / "src", root / "src", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    away = ("MLFLOW_TRACKING_URI", "GEMMA_ALIGNMENT_PARENT_RUN", "GEMMA_ALIGNMENT_STUDY", "KEDRO_ENV")
    return Project(root, {name: value for name, value in os.environ.items() if name not in away})


@pytest.fixture
def real_project(tmp_path, empty_store):
    """A copy of the real project in which nothing has run."""
    project = whole_project(tmp_path / "real")
    shutil.copy(empty_store, project.root / "mlflow.db")
    return project


@pytest.fixture(scope="session")
def toy_study(tmp_path_factory):
    """A project folder in which ``kedro run`` finished at toy size, every stage for one seed; to be read only."""
    project = whole_project(tmp_path_factory.mktemp("toy") / "study")
    code, text = project.command("kedro", "run", "--env=test", "--params", "data_root=data", timeout=1200)
    assert code == 0, text
    return project


@pytest.fixture
def free_port():
    """A port of this machine that nobody listens on."""
    return ports.free_port()


@pytest.fixture(scope="session")
def shared_start(tmp_path_factory):
    """``shared_start(project, name, make)``: what ``make`` does to a fresh project, done once and copied after that."""
    folders = {}

    def start(project, name, make):
        if name in folders:
            shutil.copytree(folders[name], project.root, dirs_exist_ok=True)
        else:
            make()
            folders[name] = tmp_path_factory.mktemp(name) / "project"
            shutil.copytree(project.root, folders[name])
        return project

    return start


class Project:
    """Runs Kedro in a project folder, in this process or in one of its own."""

    registry = "small_project.pipeline_registry"
    """Where this process takes the pipelines from: those of the small project, or the real ones."""

    def __init__(self, root, variables=None):
        self.root = root
        self.data = root / "data" / "test"
        self._variables = variables

    def run(self, *pipelines, **params):
        """One session in this process, with ``--env=test``; parameters with ``__`` for the dots."""
        import mlflow
        from kedro.framework.project import pipelines as registry
        from kedro.framework.session import KedroSession
        from kedro.framework.startup import bootstrap_project

        from gemma_alignment.dotted import nested

        while mlflow.active_run():
            mlflow.end_run()
        bootstrap_project(self.root)
        registry.configure(self.registry)
        given = nested({key.replace("__", "."): value for key, value in params.items()})
        with KedroSession.create(self.root, env="test", runtime_params=given, save_on_close=False) as session:
            return session.run(pipeline_names=list(pipelines))

    def command(self, *words, stdin="", timeout=180, **environment):
        """A command in a process of its own: its status and its output."""
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=self.root, env=self.environment(environment), text=True, input=stdin,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=timeout, check=False,
        )  # fmt: skip
        return done.returncode, done.stdout

    def start(self, *words, **environment):
        """The same without waiting."""
        return subprocess.Popen(
            [sys.executable, "-m", *words], cwd=self.root, env=self.environment(environment), text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def environment(self, more):
        return {**(self._variables or os.environ), "OMP_NUM_THREADS": "1", "COLUMNS": "200", **more}

    @property
    def client(self):
        from mlflow import MlflowClient

        return MlflowClient(f"sqlite:///{self.root / 'mlflow.db'}")

    def runs(self):
        """Every MLflow run of the experiment, oldest first."""
        experiment = self.client.get_experiment_by_name("gemma-alignment")
        if experiment is None:
            return []
        found = self.client.search_runs([experiment.experiment_id])
        return sorted(found, key=lambda run: run.info.start_time)

    def states(self):
        """Run name -> status; every name must be there once."""
        names = [run.info.run_name for run in self.runs()]
        assert len(set(names)) == len(names), names
        return {run.info.run_name: run.info.status for run in self.runs()}

    def record(self, folder):
        """The run.json of a folder under 07_model_output."""
        from gemma_alignment.fingerprints import Record

        return Record.read(self.data / "07_model_output" / folder)
