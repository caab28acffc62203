"""Who works on what of a bucket: an object that its owner made, renews, and removes at the end.

The object is made exclusively, atomically where the store can do that (S3, Google Cloud Storage, a disk). Who stops
renewing loses it: after ``STALE`` seconds by the store's own clock it is anybody's. Whoever has lost it learns so
before the next write, and ends.
"""

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Self

from gemma_alignment.errors import UserError
from gemma_alignment.liveness import birth, is_here, runs
from gemma_alignment.storage.bucket import Bucket
from gemma_alignment.storage.patience import patiently

logger = logging.getLogger(__name__)

LEASE = "lease.json"
"""Name of the object in the folder that it is for."""
BEAT = 30.0
"""Seconds between two renewals."""
STALE = 300.0
"""Seconds without one after which it is anybody's."""
MISSED = 3 * BEAT
"""Seconds without one after which the study that started its owner may start that again."""
GIVEN_UP = 180.0
"""Seconds in which a machine that a cluster has given up learns of it and ends its runs, or loses their locks."""
SETTLED = 1.0
"""Seconds after which the last of several who took a stale one at the same time has it."""
STUDY = "GEMMA_ALIGNMENT_LEASE"
"""Variable with the mark of the study that started this process: its own lost runs are no strangers."""

Work = Callable[[], Iterable[Callable[[], None]]]
"""What there is to do at a beat, part by part: one that fails keeps no other from being done."""


class Lost(UserError):
    """Somebody else has it now: what this process would write is not wanted any more."""


def owner(**facts: str) -> dict[str, Any]:
    """What a lease says of this process."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "born": birth(pid), "study": os.environ.get(STUDY), **facts}


@dataclass
class Lease:
    """One lease that this process has."""

    bucket: Bucket
    name: str
    facts: Mapping[str, Any]
    mark: str = field(default_factory=lambda: uuid.uuid4().hex)
    """Tells it from every other."""
    _beats: int = 0
    _one_at_a_time: threading.RLock = field(default_factory=threading.RLock)
    """Not every store replaces an object at once: none is looked at while it is renewed."""

    @classmethod
    def take(cls, bucket: Bucket, name: str, facts: Mapping[str, Any], what: str, seconds: float = 0.0) -> Self:
        """Make it, or take one that is over: stale, or of a process of this machine that has ended.

        One of the same study is waited for: its machine was given up, and is silent soon or lets go of it. A store that
        does not answer is waited for so many ``seconds``.

        Raises:
            UserError: when somebody has it, with who that is; ``what`` says what it is for.
        """
        lease = cls(bucket, name, facts)
        patiently(partial(lease._take, what), seconds=seconds)
        return lease

    def _take(self, what: str) -> None:
        """A second time too: one that was made, though the store did not say so, has this mark."""
        bucket, name, study = self.bucket, self.name, self.facts.get("study")
        deadline = time.monotonic() + GIVEN_UP
        while not bucket.create(name, self._content()):
            other = bucket.read(name)
            if other is None:
                continue  # let go of between the two questions
            known, silent = _known(other), _silence(bucket, name)
            if known.get("mark") == self.mark:
                break  # made, but the answer was lost: asked a second time, the store says that it is there
            is_ours = study is not None and known.get("study", study) == study  # empty: it is just being written
            if silent <= (MISSED if is_ours else STALE) and not _is_over(known):
                if is_ours and time.monotonic() < deadline:
                    time.sleep(BEAT / 10)
                    continue
                raise UserError(_refusal(bucket, name, what, known, silent))
            bucket.write(name, self._content())
            time.sleep(SETTLED)
            if self.is_mine():
                break

    def is_mine(self) -> bool:
        """Whether this process still has it."""
        return _known(self.bucket.read(self.name) or b"").get("mark") == self.mark

    def check(self) -> None:
        """Refuse to go on without it.

        Raises:
            Lost: when another process has it.
        """
        with self._one_at_a_time:
            content = self.bucket.read(self.name)
        other = _known(content or b"")
        if other.get("mark") != self.mark:
            who = f"process {other.get('pid')} on {other.get('host')} has taken over" if content else "it was removed"
            raise Lost(
                f"{self.bucket.address}/{self.name} is not this process's any more: {who}, because nothing was heard "
                f"from here for {STALE:.0f} seconds or because somebody removed it. What was not brought there yet is "
                "left out: the other one makes it again"
            )

    def renew(self) -> None:
        """Say that this process lives.

        Raises:
            Lost: when another process has it.
        """
        with self._one_at_a_time:
            self.check()
            self._beats += 1
            self.bucket.write(self.name, self._content())

    def release(self) -> None:
        """Let others have it at once."""
        if self.is_mine():
            self.bucket.remove([self.name])

    def _content(self) -> bytes:
        return json.dumps({**self.facts, "mark": self.mark, "beats": self._beats}).encode()


class Pulse:
    """Renews leases in the background from when it is made, and does something more at each beat, beside that.

    What more there is may take longer than a lease lasts; that lets none go stale. ``lost`` is called, in a thread of
    this one, when another process has one of them.
    """

    def __init__(
        self, leases: Sequence[Lease], more: Callable[[], None] = lambda: None,
        lost: Callable[[str], None] = lambda why: None,
    ) -> None:  # fmt: skip
        self._leases, self._tell = leases, lost
        self._lost: Lost | None = None
        self._over = threading.Event()
        works: dict[str, Work] = {"leases": lambda: [lease.renew for lease in leases], "lines": lambda: [more]}
        self._threads = [
            threading.Thread(target=self._beat, args=(work,), name=name, daemon=True) for name, work in works.items()
        ]
        for thread in self._threads:
            thread.start()

    def check(self) -> None:
        """Refuse to go on without all of them.

        Raises:
            Lost: when another process has one.
        """
        if self._lost is not None:
            raise self._lost

    def end(self) -> None:
        """Stop, and let others have them at once."""
        self._over.set()
        for thread in self._threads:
            thread.join()
        for lease in self._leases:
            try:
                lease.release()
            except UserError as error:
                logger.warning("%s", error)

    def _beat(self, work: Work) -> None:
        while self._lost is None and not self._over.wait(BEAT):
            for part in work():
                try:
                    part()
                except Lost as error:
                    self._lost = error
                    self._tell(str(error))
                except Exception as error:  # a bucket that does not answer, or a full disk, may be well the next time
                    logger.debug("%s", error)


def is_anothers(bucket: Bucket, name: str, pid: int) -> bool:
    """Whether somebody has it, and that is not process ``pid`` of this machine."""
    known = _known(bucket.read(name) or b"")
    return bool(known) and not (known.get("pid") == pid and is_here(known.get("host"), known.get("born")))


def _known(content: bytes) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _silence(bucket: Bucket, name: str) -> float:
    """Seconds since it was renewed."""
    written = bucket.written(name)
    return 0.0 if written is None else time.time() + bucket.skew - written


def _is_over(other: Mapping[str, Any]) -> bool:
    """Whether its owner is a process of this machine, since it was started, that has ended."""
    pid, born = other.get("pid"), other.get("born")
    return isinstance(pid, int) and is_here(other.get("host"), born) and not runs(pid, born)


def _refusal(bucket: Bucket, name: str, what: str, other: Mapping[str, Any], silent: float) -> str:
    who = f"process {other.get('pid')} on {other.get('host')} since {other.get('since')}"
    return (
        f"{what} already: `{other.get('command', 'another process')}` ({who}, last heard of {max(0.0, silent):.0f} "
        f"seconds ago). Wait for it, or stop it. If it is gone: {STALE:.0f} seconds after its last sign of life it "
        f"counts as over, and at once when you remove {bucket.address}/{name}"
    )
