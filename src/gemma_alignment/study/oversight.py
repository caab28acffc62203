"""What a study sees of its runs where they leave their files in a bucket, and that it is the only one there."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from gemma_alignment.errors import UserError
from gemma_alignment.fingerprints import Record, now
from gemma_alignment.hooks.provenance import command
from gemma_alignment.liveness import is_here
from gemma_alignment.storage.address import is_bucket
from gemma_alignment.storage.bucket import Unreachable
from gemma_alignment.storage.lease import Lease, Pulse, owner
from gemma_alignment.storage.mirror import Mirror
from gemma_alignment.storage.names import RECORD, but_checkpoints, group_of, small
from gemma_alignment.study.lock import LOCK, alone

logger = logging.getLogger(__name__)

LOOK = 5.0
"""Seconds between two looks at what runs on other machines have brought to the bucket."""


@dataclass
class Oversight:
    """A study's own copy of a bucket."""

    mirror: Mirror
    lease: Lease
    pulse: Pulse
    _looked: float = float("-inf")
    _is_told: bool = False

    @property
    def address(self) -> str:
        """Of the bucket."""
        return self.mirror.bucket.address

    def look(self, at_once: bool = False) -> None:
        """Bring here how far the runs of other machines are; a bucket that does not answer is asked again later."""
        if at_once or time.monotonic() - self._looked >= LOOK:
            self._looked = time.monotonic()
            try:
                self.mirror.pull(small)
                self._is_told = False
            except Unreachable as error:
                if not self._is_told:
                    logger.warning("%s The study goes on, and looks again", error)
                self._is_told = True

    def gather(self) -> None:
        """Bring here all that runs of other machines have made, but for the contents of their checkpoints."""
        self.mirror.pull(but_checkpoints)

    def bring(self) -> None:
        """Bring there what was changed here and is no living run's: logs, and the ends of runs that did not say so."""
        try:
            self.pulse.check()
            self.mirror.push(self.mirror.groups(), wanted=self._may_tell, before=self.lease.check)
        except UserError as error:
            logger.warning("%s", error)

    def _may_tell(self, name: str) -> bool:
        """Anything but what only others know.

        That is that a run of another machine failed: cut off from the bucket, it may have finished, and brings that
        when it can. And of a file that is not here, that it was given up: a cleaner may have taken it. Only a run of
        this machine that did not end well may have left that untold.
        """
        record = Record.read(self.mirror.folder / group_of(name))
        is_own = record is not None and is_here(record.host, record.born)
        is_finished = record is not None and record.status == "finished"
        if not (self.mirror.folder / name).exists():
            return is_own and not is_finished
        return not name.endswith(f"/{RECORD}") or record is None or is_finished or is_own


@contextmanager
def held(folder: Path, data_root: str) -> Iterator[Oversight | None]:
    """Be the only study in a data folder, and in the bucket that it is the working folder of, for as long as it runs.

    Raises:
        UserError: when another study is there, and for a bucket without rights.
    """
    mirror = Mirror(data_root, folder) if is_bucket(data_root) else None  # says best why a folder cannot be made
    with alone(folder):
        if mirror is None:
            yield None
            return
        mirror.bucket.check()
        facts = owner(since=now(), command=command())
        lease = Lease.take(mirror.bucket, LOCK, facts, f"A study runs in {mirror.bucket.address}")
        pulse = Pulse([lease])
        try:
            sight = Oversight(mirror, lease, pulse)
            sight.gather()
            sight.bring()
            yield sight
        finally:
            pulse.end()


def fetched(folder: Path, data_root: str, all_of_it: bool = False) -> None:
    """Bring here what tells how far a study is, or all of it: for whoever only looks.

    Raises:
        UserError: when the bucket cannot be read.
    """
    if is_bucket(data_root):
        Mirror(data_root, folder).pull(but_checkpoints if all_of_it else small)
