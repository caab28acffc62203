"""What a stage was made from, and whether a new start would make the same: digests and ``run.json``."""

import dataclasses
import fcntl
import hashlib
import json
import os
import re
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from gemma_alignment.datasets.atomic import beside
from gemma_alignment.dotted import dotted
from gemma_alignment.errors import UserError
from gemma_alignment.liveness import birth, is_held, is_here, runs
from gemma_alignment.redaction import scrubbed
from gemma_alignment.storage.lease import LEASE, STALE
from gemma_alignment.storage.names import RECORD

Status = Literal["running", "finished", "partial", "failed", "killed"]
INTERRUPTED = ("running", "failed", "killed")
STANDING = ("finished", "partial")
"""Ends of which something stands that was made as the record says: all that the stage leaves, or a part."""
CHUNK = 1 << 20
BASE_PATH = re.compile(rb'("base_model_name_or_path":\s*)"(?:[^"\\]|\\.)*"')
ATTEMPT = "GEMMA_ALIGNMENT_ATTEMPT"
"""Variable with the mark of the attempt, handed to a cluster, that this process does the run of."""
QUIET = 3600.0
"""Seconds without a line after which a process of another machine counts as over."""


def digest(*paths: Path) -> str:
    """SHA-256 over the names and bytes of files; a directory counts with all its files, sorted.

    Names are relative, so the same content elsewhere has the same digest. Of an adapter's settings the path of its base
    does not count: which base that is stands in ``provenance.json``.
    """
    total = hashlib.sha256()
    for path in paths:
        for name, file in _files(path):
            total.update(f"{name}\0{_digest_of_content(file)}\n".encode())
    return total.hexdigest()


def _digest_of_content(file: Path) -> str:
    if file.name != "adapter_config.json":
        return digest_of_bytes(file)
    return hashlib.sha256(BASE_PATH.sub(rb'\1""', file.read_bytes())).hexdigest()


def digest_of_bytes(file: Path) -> str:
    """SHA-256 of a file, whatever its name."""
    content = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(CHUNK):
            content.update(block)
    return content.hexdigest()


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if not path.is_dir():
        yield path.name, path
        return
    for file in sorted(path.rglob("*")):
        if file.is_file():
            yield f"{path.name}/{file.relative_to(path).as_posix()}", file


def digest_of(values: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of ``values``: the order of keys does not count."""
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Record:
    """The ``run.json`` of a stage."""

    stage: str
    seed: int
    variant: str
    fingerprints: Mapping[str, str]
    """``configuration`` and those of ``data``, ``base_model``, ``sft``, ``reward_model`` that it read."""
    parameters: Mapping[str, Any]
    """Every parameter its nodes read: what ``configuration`` is the digest of."""
    outputs: Mapping[str, str] = field(default_factory=dict)
    """Digests of what it left, once it is over."""
    variant_kind: str = ""
    """What the variant was asked for as: the sections of the report that it stands in."""
    method: str | None = None
    mlflow_run_id: str | None = None
    mlflow_view: str | None = None
    """The address at which MLflow's pages compare the arms."""
    status: Status = "running"
    created: str = field(default_factory=now)
    ended: str | None = None
    error: str | None = None
    peak_mb: float | None = None
    """Peak memory of the stage in MiB: allocated on the GPU, on a CPU resident size of the process."""
    commit: str | None = None
    command: str | None = None
    pid: int = field(default_factory=os.getpid)
    born: str | None = field(default_factory=lambda: birth(os.getpid()))
    """Tells the process from a later one of the same number."""
    host: str = field(default_factory=socket.gethostname)
    attempt: str | None = field(default_factory=lambda: os.environ.get(ATTEMPT))
    """The attempt that wrote it, where a cluster was handed the run: tells it from what stood there before."""

    @classmethod
    def read(cls, directory: Path) -> Self | None:
        """The record of a run directory, or None where there is none that can be read."""
        try:
            values = json.loads((directory / RECORD).read_text(encoding="utf-8"))
            known = {f.name for f in dataclasses.fields(cls)}
            return cls(**{"attempt": None, **{key: value for key, value in values.items() if key in known}})
        except (OSError, ValueError, TypeError, AttributeError):
            return None

    def write(self, directory: Path) -> None:
        """Write it atomically as ``run.json``."""
        with beside(directory / RECORD) as path:
            text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, sort_keys=True)
            path.write_text(text + "\n", encoding="utf-8")

    def end(self, status: Status, error: str | None = None) -> Self:
        """The same with its end."""
        return dataclasses.replace(self, status=status, ended=now(), error=None if error is None else scrubbed(error))

    def is_alive(self, directory: Path) -> bool:
        """Whether it says running and its process still exists.

        A process of another machine cannot be looked at, nor one of a machine of this name before a restart. It lives
        while it holds ``directory``; where a bucket says who writes there, while that is newer than ``STALE`` seconds;
        else, as locks may not be passed on to a machine of another name, while something there is newer than ``QUIET``.
        """
        if self.status != "running":
            return False
        if is_here(self.host, self.born):
            return runs(self.pid, self.born)
        with suppress(FileNotFoundError):
            return time.time() - (directory / LEASE).stat().st_mtime < STALE
        if is_held(directory):
            return True
        return self.host != socket.gethostname() and time.time() - _last_written(directory) < QUIET


def _last_written(directory: Path) -> float:
    """When anything directly in a folder was last written, in seconds since 1970."""
    times = []
    for path in directory.iterdir() if directory.is_dir() else ():
        with suppress(FileNotFoundError):  # renamed onto another meanwhile
            times.append(path.stat().st_mtime)
    return max(times, default=0.0)


@contextmanager
def one_at_a_time(directory: Path) -> Iterator[None]:
    """Hold a folder while its record is read, judged and written: of two starts at once the second sees the first."""
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / ".start.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def differences(old: Record, new: Record) -> list[str]:
    """Why ``new`` would not make what ``old`` made: a line for each parameter and each input that differs."""
    lines: list[str] = []
    if old.fingerprints.get("configuration") != new.fingerprints.get("configuration"):
        before, after = dotted(old.parameters), dotted(new.parameters)
        for key in sorted(before.keys() | after.keys()):
            was, is_now = before.get(key, _ABSENT), after.get(key, _ABSENT)
            if was != is_now:
                lines.append(f"{key}: {_shown(was)} → {_shown(is_now)}")
    for name in sorted(old.fingerprints.keys() & new.fingerprints.keys() - {"configuration"}):
        was, is_now = old.fingerprints[name], new.fingerprints[name]
        if was != is_now:
            lines.append(f"{name} (input): {was[:12]} → {is_now[:12]}")
    return lines


_ABSENT = object()


def _shown(value: Any) -> str:
    return "absent" if value is _ABSENT else json.dumps(value, ensure_ascii=False)


def refuse_living(directory: Path, old: Record | None, overwrite: bool) -> None:
    """Refuse a start beside a process that writes in ``directory``.

    Unless a process of another machine holds the folder, it is only a guess whether it lives: there ``overwrite``
    takes the user's word for it.

    Raises:
        UserError: with the process.
    """
    if old is None or not old.is_alive(directory):
        return
    is_seen = is_here(old.host, old.born)
    is_known = is_seen or is_held(directory)
    if (overwrite and not is_known) or (is_seen and old.pid == os.getpid()):
        return
    gone = (
        f". If that machine is gone: it counts as stopped {QUIET / 60:.0f} minutes after its last line, and "
        "overwrite=true begins anew at once"
    )
    raise UserError(
        f"{directory} is being written by process {old.pid} on {old.host} since {old.created}: "
        f"wait for it, or stop it{'' if is_known else gone}"
    )


def refuse(
    directory: Path, old: Record | None, new: Record, checkpoint: int | None = None, resume: bool = False
) -> None:
    """Refuse a start that would lose or mix up what stands in ``directory``.

    That is a finished stage, or a part of one, that ``new`` would not repeat; an interrupted one with a checkpoint, the
    last of iteration ``checkpoint``, unless ``new`` is to ``resume`` it; and for that, one that was made from something
    else.

    Raises:
        UserError: with every difference and the ways out.
    """
    if old is None:
        if checkpoint is not None:
            raise UserError(
                f"{directory} holds checkpoints, and no readable {RECORD} says what they were made from.\n"
                "Start again with:\n  --params overwrite=true   to replace them"
            )
        return
    lines = differences(old, new)
    resumable = checkpoint is not None and old.status in INTERRUPTED
    if (resumable and not resume) or (lines and (resume or old.status in STANDING)):
        raise UserError(_refusal(directory, old, lines, checkpoint if resumable else None))


def _refusal(directory: Path, old: Record, lines: Sequence[str], checkpoint: int | None) -> str:
    """What stands there, how it differs from what is asked for, and the ways out."""
    kind = {"finished": "a finished run", "partial": "a part of a run"}.get(old.status, "an interrupted run")
    text = f"{directory} holds {kind} of {old.stage}"
    ways = ["overwrite=true   to replace it"]
    if lines and old.method is not None:
        ways.insert(0, "variant=NAME     to keep both")
    if checkpoint is not None:
        text += f", with a checkpoint of iteration {checkpoint},"
        asked = "its own parameters" if lines else "the same parameters"
        ways.insert(0, f"resume=true      and {asked}, to go on from there (kedro study: --resume)")
    text += " that was made from something else:\n" if lines else " that is not finished.\n"
    text += "".join(f"  {line}\n" for line in lines)
    return text + "Start again with one of:\n" + "\n".join(f"  --params {way}" for way in ways)
