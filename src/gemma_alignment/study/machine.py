"""What a machine of a cluster must share with the one where a study was started: asked before anything is spent."""

import hashlib
import socket
import time
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from typing import NamedTuple, Self

import gemma_alignment
from gemma_alignment.errors import UserError
from gemma_alignment.storage.bucket import Bucket
from gemma_alignment.storage.lease import Lease
from gemma_alignment.study.engine import Site
from gemma_alignment.study.lock import LOCK, is_locked, token_of

DECISIVE = ("torch", "transformers", "peft", "tokenizers", "safetensors", "numpy", "kedro", "mlflow")
"""Packages of which another version may make other numbers, or files that cannot be read."""
ARRIVES = 10.0
"""Seconds after which what another machine wrote must be seen here."""
LOOK = 0.1
"""Seconds between two looks for it."""

SAME_PATH = "it under the same path"
RIGHTS = "give the user of the runs the right to write there"


class Outcome(NamedTuple):
    """How something that a machine was handed ended."""

    code: int
    """Exit status of the run."""
    word: str | None = None
    """Why the run was not even started."""


def versions(names: Iterable[str] = DECISIVE) -> dict[str, str]:
    """What this machine would run with; of this package also what its source says, whatever it calls its version."""
    own = {"python": python_version(), "gemma_alignment": gemma_alignment.__version__, "its source": _source()}
    return own | {name: _version(name) for name in names if name not in own}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def _source() -> str:
    """SHA-256, shortened, over the names and bytes of this package's modules."""
    folder, total = Path(gemma_alignment.__file__).parent, hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        content = file.read_bytes()
        total.update(f"{file.relative_to(folder).as_posix()}\0{len(content)}\0".encode() + content)
    return total.hexdigest()[:12]


@dataclass(frozen=True)
class Premises:
    """What every machine needs, as it is where the study was started."""

    project: Path
    data_root: Path
    token: str
    """Of the study that holds the folder, or its lease on the bucket: who reads the same there shares it."""
    versions: Mapping[str, str]
    address: str | None = None
    """Of the bucket whose working folder the data folder is: each machine has one of its own."""

    @classmethod
    def here(cls, site: Site, *engine: str) -> Self:
        """Those of this machine, with the packages of the engine."""
        token = site.mark or token_of(site.data_root)
        return cls(site.project, site.data_root, token, versions((*DECISIVE, *engine)), site.address)

    def check(self) -> None:
        """Look whether this machine has them.

        Raises:
            UserError: with what differs, and what to do.
        """
        here = versions(self.versions)
        other = [
            f"{name} {here[name]} (the study's machine has {there})"
            for name, there in self.versions.items()
            if here[name] != there
        ]
        if other:
            raise UserError(
                f"other versions than where the study was started: {', '.join(other)}; install the same on both"
            )
        if not (self.project / "pyproject.toml").is_file():
            raise UserError(f"the project's folder {self.project} is not there; every machine needs {SAME_PATH}")
        self._check_folder() if self.address is None else self._check_bucket(self.address)

    def _check_bucket(self, address: str) -> None:
        bucket = Bucket(address)
        bucket.check()
        if not Lease(bucket, LOCK, {}, self.token).is_mine():
            raise UserError(f"{address} is held by another study, or by none, as seen from here")

    def _check_folder(self) -> None:
        try:
            token = token_of(self.data_root)
        except OSError as error:
            raise UserError(f"the data folder cannot be read ({error}); every machine needs {SAME_PATH}") from error
        if token != self.token:
            raise UserError(
                f"{self.data_root} is another folder here than on the study's machine; it has to be a shared one"
            )


@dataclass(frozen=True)
class Probe:
    """What a machine is handed before anything else: it looks whether it could do a run, and leaves its answer."""

    premises: Premises
    name: str = field(default_factory=lambda: f".probe-{uuid.uuid4().hex}")
    """Of the file that it writes."""

    @property
    def answer(self) -> Path:
        """Where it writes it."""
        return self.premises.data_root / self.name

    def __call__(self) -> Outcome:
        """Look, on the machine that is meant."""
        try:
            self.premises.check()
            if self.premises.address is None:
                self._check_storage()
        except UserError as error:
            return Outcome(1, f"{socket.gethostname()}: {error}")
        return Outcome(0)

    def _check_storage(self) -> None:
        root = self.premises.data_root
        try:
            if not is_locked(root):
                raise UserError(
                    f"locks in {root} are not passed on between machines, so two runs could write into one folder; "
                    "mount it with locks (NFS 4 without local_lock, Lustre with flock)"
                )
            self.answer.write_text(self.premises.token, encoding="utf-8")
        except OSError as error:
            raise UserError(f"the data folder cannot be written ({error}); {RIGHTS}") from error

    def missing(self, outcome: Outcome, machine: str) -> str | None:
        """Why ``machine`` could not do a run, where the study was started; the answer is taken away."""
        if outcome.code != 0:
            return outcome.word or f"{machine}: it did not say why"
        if self.premises.address is None and not self._arrived():
            return f"{machine}: what it writes into {self.premises.data_root} is not seen here; it has to be shared"
        return None

    def _arrived(self) -> bool:
        deadline = time.monotonic() + ARRIVES
        while True:
            try:
                said = self.answer.read_text(encoding="utf-8")
            except OSError:
                said = ""
            if said == self.premises.token or time.monotonic() >= deadline:
                self.answer.unlink(missing_ok=True)
                return said == self.premises.token
            time.sleep(LOOK)
