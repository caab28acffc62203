"""A process that has loaded every library and holds nothing else; the processes of a study are forked from it.

Most of what a small run takes to start is the loading of libraries, the same ones each time. The server loads them once
and then waits: it has no model, no threads and no connections, so nothing of a study is on both sides of a fork. Each
process is forked twice. The one in between ends at once, and as the study has asked the system for its orphans, the
other one is its child from then on, as if the study had started it itself: the end of the server ends no run.

Only on Linux, where a process can ask for its orphans, and not beside a GPU, whose driver does not outlive a fork;
elsewhere processes are started anew. So they are where the server cannot be had, or has died.
"""

import ctypes
import gc
import importlib
import os
import random
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from gemma_alignment.study.processes import Process, anew

SERVER = __name__
"""The module that is the server when run."""
COMMAND = "kedro.framework.cli"
"""The module whose ``main`` is Kedro's command."""
ADOPT_ORPHANS = 36
"""``PR_SET_CHILD_SUBREAPER`` of prctl(2)."""
LONGEST = 2**17
"""Bytes of a request."""
LIBRARIES = (
    "bitsandbytes", "kedro.framework.cli.cli", "kedro.framework.cli.project", "kedro.framework.session",
    "kedro.framework.startup", "kedro.runner", "kedro_datasets.json", "kedro_datasets.pandas", "kedro_datasets.text",
    "kedro_mlflow.framework.cli.cli", "kedro_mlflow.framework.hooks", "mlflow",
    "mlflow.store.tracking.sqlalchemy_store", "mlflow.tracking.fluent", "numpy", "omegaconf", "pandas", "peft",
    "safetensors.torch", "scipy.stats", "torch", "transformers",
)  # fmt: skip
"""What every run loads of others."""
OWN = (
    "gemma_alignment.cli", "gemma_alignment.hooks.session", "gemma_alignment.pipeline_registry",
    "gemma_alignment.pipelines.arm_nodes", "gemma_alignment.modeling.roles", "gemma_alignment.modeling.loading",
    "gemma_alignment.modeling.saving", "gemma_alignment.training.policy_optimization",
    "gemma_alignment.training.preference", "gemma_alignment.training.supervised",
)  # fmt: skip
"""What every run loads of this project."""
LOOKED_UP = ("AutoModelForCausalLM", "AutoTokenizer", "GemmaForCausalLM", "GenerationConfig", "PreTrainedTokenizerFast")
"""Of transformers: loaded when they are looked up."""

OUTLIVES = ("jemalloc_bg_thd",)
"""Threads that do not mind: Arrow's allocator starts its housekeeper anew after a fork."""


class Forked:
    """A process that the server forked; a child of this one, and told of like a ``subprocess.Popen``."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """The exit status, negative for a signal; None while it runs."""
        return self._collect(os.WNOHANG)

    def wait(self) -> int | None:
        """The same, when it is over."""
        return self._collect(0)

    def _collect(self, how: int) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, how)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


class Warm:
    """Starts the processes of a study: from the server while it is there, else anew.

    The server begins to load when this is made; the first start waits until it is through.
    """

    def __init__(self, project: Path, variables: Mapping[str, str], is_wanted: bool = True) -> None:
        self._line: socket.socket | None = None
        self._server: subprocess.Popen[bytes] | None = None
        self._is_ready = False
        if is_wanted and adopt(True):
            self._line, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with other:
                self._server = subprocess.Popen(
                    [sys.executable, "-m", SERVER, str(other.fileno())], cwd=project, env=dict(variables),
                    pass_fds=(other.fileno(),), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL, start_new_session=True,
                )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._give_up()
        adopt(False)

    def start(self, words: Sequence[str], project: Path, variables: Mapping[str, str], output: IO[bytes]) -> Process:
        """A process of ``kedro`` with these words, in a group of its own, its output in a file."""
        if self._line is not None:
            try:
                return self._fork(words, variables, output)
            except OSError:
                self._give_up()
        return anew(words, project, variables, output)

    def _fork(self, words: Sequence[str], variables: Mapping[str, str], output: IO[bytes]) -> Process:
        line = self._line
        if line is None:
            raise ConnectionError
        if not self._is_ready:
            self._is_ready = bool(_heard(line))
        own = {key: value for key, value in variables.items() if os.environ.get(key) != value}
        socket.send_fds(line, ["\0".join([*words, "", *_flat(own)]).encode()], [output.fileno()])
        return Forked(int(_heard(line)))

    def _give_up(self) -> None:
        """Let the server end; what it forked goes on."""
        if self._line is not None:
            self._line.close()
            self._line = None
        if self._server is not None:
            self._server.wait()
            self._server = None


def _flat(variables: Mapping[str, str]) -> list[str]:
    return [word for pair in variables.items() for word in pair]


def _heard(line: socket.socket) -> bytes:
    """What the server says.

    Raises:
        ConnectionError: when it has ended.
    """
    said = line.recv(LONGEST)
    if not said:
        raise ConnectionError("the server has ended")
    return said


def adopt(orphans: bool) -> bool:
    """Be the parent of processes below this one whose own has ended, or no more; whether the system can do that."""
    if sys.platform != "linux":
        return False
    try:
        return ctypes.CDLL(None).prctl(ADOPT_ORPHANS, int(orphans), 0, 0, 0) == 0
    except (OSError, AttributeError):
        return False


def load() -> None:
    """Load every library, and nothing else."""
    for name in (*LIBRARIES, *OWN):
        importlib.import_module(name)
    for name in LOOKED_UP:
        getattr(importlib.import_module("transformers"), name)
    gc.collect()
    gc.freeze()  # what is there stays on pages that parent and children share


def threads() -> list[str]:
    """What runs in this process beside the main thread and would be missing after a fork."""
    tasks = (task for task in Path("/proc/self/task").iterdir() if int(task.name) != os.getpid())
    return [name for name in ((task / "comm").read_text().strip() for task in tasks) if name not in OUTLIVES]


def _serve(line: socket.socket) -> tuple[list[str], dict[str, str], int] | None:
    """Fork a process a request: in each of them, what is asked of it; in the server None when nobody asks any more."""
    while True:
        said, files, _, _ = socket.recv_fds(line, LONGEST, 1)
        if not said:
            return None
        said_words = said.decode().split("\0")
        here = said_words.index("")
        words, flat = said_words[:here], said_words[here + 1 :]
        pid = _fork_twice()
        if pid == 0:
            return words, dict(zip(flat[::2], flat[1::2], strict=True)), files[0]
        os.close(files[0])
        line.send(str(pid).encode())


def _fork_twice() -> int:
    """0 in the new process, its number in this one, whose child it is not; it has a group of its own by then."""
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        if os.fork() == 0:
            os.setsid()  # before anybody knows its number: who stops it stops its group
            os.write(writing, str(os.getpid()).encode())
            os.close(reading)
            os.close(writing)
            return 0
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        pid = int(said.read())
    os.waitpid(between, 0)
    return pid


def _become(words: list[str], variables: Mapping[str, str], output: int) -> None:
    """Be a process of ``kedro`` as if started anew: own output, own chance."""
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.environ.update(variables)
    random.seed()
    importlib.import_module("numpy").random.seed()
    sys.argv = ["python -m kedro", *words]


def main() -> None:
    """The server, and after each fork a run."""
    load()
    if found := threads():
        sys.exit(f"a library has started {', '.join(found)}: a fork would lose it")
    with socket.socket(fileno=int(sys.argv[1])) as line:
        line.send(b"ready")
        asked = _serve(line)
    if asked is not None:
        _become(*asked)
        importlib.import_module(COMMAND).main()


if __name__ == "__main__":
    main()
