"""PostgreSQL and MLflow's server before it, by the command of ``docs/scaling.md``, here or on another machine."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from ports import free_port

DOCUMENT = Path(__file__).parents[1] / "docs" / "scaling.md"


def here(*words):
    """A command on this machine."""
    return [*map(str, words)]


def _programs():
    """The folder of PostgreSQL's programs: Debian keeps those of a server off the path."""
    on_path = shutil.which("initdb")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb")) if on_path is None else [Path(on_path)]
    return found[-1].parent if found else None


@contextmanager
def database(on=here):
    """A PostgreSQL of its own on a free port, whose user needs no password; ``socket`` is for this machine."""
    psycopg2 = pytest.importorskip("psycopg2", reason="the extra server is not installed")
    programs = _programs()
    if programs is None:
        pytest.skip("no PostgreSQL server is installed")
    folder, port = Path(tempfile.mkdtemp()), free_port()  # pytest's own folders are closed to other users
    user = ["runuser", "-u", "postgres", "--"] if os.getuid() == 0 else []
    if user:  # it refuses to run as root
        shutil.chown(folder, "postgres")
    data = folder / "data"
    subprocess.run(
        [*user, programs / "initdb", "-D", data, "-A", "trust", "-U", "mlflow"], check=True, stdout=subprocess.DEVNULL
    )
    options = f"-p {port} -k {folder} -c listen_addresses=127.0.0.1"
    control = [*user, programs / "pg_ctl", "-D", data, "-w", "-t", "300", "-l", folder / "log"]
    subprocess.run(on(*control, "-o", options, "start"), check=True, stdout=subprocess.DEVNULL)
    socket = f"postgresql://mlflow@:{port}/mlflow?host={folder}"
    with closing(psycopg2.connect(socket.replace("/mlflow?", "/postgres?"))) as connection:
        connection.autocommit = True
        connection.cursor().execute("CREATE DATABASE mlflow")
    try:
        yield SimpleNamespace(uri=f"postgresql+psycopg2://mlflow@127.0.0.1:{port}/mlflow", socket=socket)
    finally:
        subprocess.run([*control, "-m", "immediate", "stop"], check=False, stdout=subprocess.DEVNULL)
        shutil.rmtree(folder)


class Server:
    """MLflow's server, which can be shot and started again."""

    def __init__(self, uri, folder, on=here, address="127.0.0.1"):
        (line,) = [one for one in DOCUMENT.read_text().splitlines() if one.startswith("mlflow server ")]
        words = shlex.split(line)
        assert words[words.index("--host") + 1] == "127.0.0.1"
        port, self.artifacts = free_port(), folder / "artifacts"
        own = {"--backend-store-uri": uri, "--port": port, "--artifacts-destination": self.artifacts, "--host": address}
        for option, value in own.items():
            words[words.index(option) + 1] = str(value)
        self._words, self._folder = on(sys.executable, "-m", *words), folder
        self.uri = f"http://{address}:{port}"

    def start(self):
        """Start it, and wait until it answers."""
        import requests

        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self._words, cwd=self._folder, start_new_session=True, stdout=log, stderr=subprocess.STDOUT,
                env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            )  # fmt: skip
        deadline = time.monotonic() + 900
        while time.monotonic() < deadline:
            with suppress(requests.RequestException):
                if requests.get(f"{self.uri}/health", timeout=2).ok:
                    return
            assert self._process.poll() is None, (self._folder / "log").read_text()
            time.sleep(0.3)
        raise AssertionError((self._folder / "log").read_text())

    def shoot(self):
        """End it and its workers at once."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


@contextmanager
def serving(uri, folder, on=here, address="127.0.0.1"):
    """One that runs."""
    server = Server(uri, folder, on, address)
    server.start()
    try:
        yield server
    finally:
        server.shoot()
