"""The working folder of a bucket on this machine: brought here before it is read, brought there when it was written.

What stands in the bucket is at each moment what a crash could have left on a disk: files arrive in the order in which
a run makes them, lines before the checkpoint that counts on them, a checkpoint's list of sums after its contents, a
stage's record after all that it speaks of. So nothing that is half there is taken for whole: the checks that hold
after a crash hold there too.

Files belong together in groups, a run's folder being one. Where nobody else has changed a group since this machine last
had it, this machine's may be newer and stays; else the bucket's replaces it, all of it. Files that are only ever
appended to, and hold what was paid for, lose no line of either.
"""

import fcntl
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from gemma_alignment.errors import UserError
from gemma_alignment.storage.address import working_folder
from gemma_alignment.storage.bucket import Bucket, Object
from gemma_alignment.storage.known import Files, Known, missing
from gemma_alignment.storage.lease import LEASE
from gemma_alignment.storage.names import (
    CHECKPOINTS,
    LINES,
    LOG,
    PAID,
    SUMS,
    Wanted,
    everything,
    group_of,
    is_data,
    place_of,
    rank,
)

OWN = ".mirror"
"""Folder in a working folder for what only this machine needs to know."""


class Mirror:
    """One bucket and its working folder here."""

    def __init__(self, address: str, folder: Path | None = None) -> None:
        self.bucket = Bucket(address)
        self.folder = working_folder(address) if folder is None else folder
        self._own = self.folder / OWN
        try:
            self._own.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.bucket.address} is worked on in {self.folder}, which cannot be made ({error}): set "
                "XDG_CACHE_HOME to a folder of this machine with room for the study"
            ) from error
        self._files = Files(self._own / "files.db")
        self._claims: dict[str, int] = {}
        self._one_at_a_time = threading.RLock()

    def name_of(self, path: Path) -> str | None:
        """The name of a file or folder of the working folder; None for one that is elsewhere."""
        return path.relative_to(self.folder).as_posix() if path.is_relative_to(self.folder) else None

    def claim(self, groups: Iterable[str]) -> None:
        """Tell the other processes of this machine that this one writes these groups, until it ends."""
        for group in groups:
            if group not in self._claims:
                self._claims[group] = number = self._opened(group)
                fcntl.flock(number, fcntl.LOCK_EX)

    def close(self) -> None:
        """Let other processes of this machine bring the groups here."""
        for number in self._claims.values():
            os.close(number)
        self._claims.clear()

    def pull(self, wanted: Wanted = everything) -> None:
        """Bring here what is wanted and not here; what another process of this machine writes stays as it is.

        Raises:
            UserError: when the bucket cannot be read, or has lost everything.
        """
        with self._one_at_a_time, self._alone("pulling"):
            objects = self.bucket.listing()
            known = self._files.read()
            self._refuse_emptied(objects, known)
            self._pull_leases({name: one for name, one in objects.items() if name.endswith(f"/{LEASE}")}, known)
            there = {name: one for name, one in objects.items() if is_data(name)}
            names = {name for name in (*there, *known) if is_data(name) and wanted(name)}
            for group in sorted({group_of(name) for name in names}):
                with self._unless_written(group) as is_free:
                    if is_free:
                        self._pull_group(group, [name for name in names if group_of(name) == group], there, known)

    def push(
        self, groups: Iterable[str], only_grown: bool = False, wanted: Wanted = everything,
        before: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """Bring there what was changed here and is wanted, in the order in which it may be believed.

        ``only_grown``: only lines that were added to, which never contradict what is there. What another process of
        this machine writes is left to that. ``before`` is called before each object that is written or removed: what
        it raises is the end, with what came there so far noted. A checkpoint is given up as a whole: where its list of
        sums is as it was, contents that are not here were taken by whatever cleans this machine, and stay there.

        Raises:
            UserError: when the bucket cannot be written.
        """
        if not self._one_at_a_time.acquire(blocking=not only_grown):
            return  # something bigger is on its way, and takes them along
        try:
            own = frozenset(group for group in groups if self._is_free(group))
            known = {name: one for name, one in self._files.read().items() if group_of(name) in own and wanted(name)}
            here = {name: stat for name, stat in self._here(own) if wanted(name)}
            changed = [name for name, stat in here.items() if name not in known or stat != known[name][1:]]
            shorter = {name for name in changed if name in known and here[name][0] < known[name].size}
            if only_grown:
                self._send([name for name in changed if name.endswith(LINES) and name not in shorter], here, before)
                return
            # given up for a later checkpoint: after that one. Given up altogether: before what does not fit to it
            whole = {group_of(name) for name in here if name.endswith(f"/{SUMS}")}
            later = whole - {group_of(name) for name in shorter}
            kept = {place_of(name) for name in here.keys() - set(changed) if name.endswith(f"/{SUMS}")}
            gone = {name for name in known.keys() - here.keys() if is_data(name) and place_of(name) not in kept}
            self._remove([name for name in gone if group_of(name) not in later], before)
            self._send(sorted(changed, key=rank), here, before)
            self._remove([name for name in gone if group_of(name) in later], before)
        finally:
            self._one_at_a_time.release()

    def groups(self) -> set[str]:
        """All that is here."""
        names = (path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file())
        return {group_of(name) for name in names if is_data(name)}

    def _send(self, names: Iterable[str], here: Mapping[str, tuple[int, int]], before: Callable[[], None]) -> None:
        for name in names:
            before()
            sent = self.bucket.send(name, self.folder / name)
            if sent is not None:
                self._files.note(name, Known(sent.version, *here[name]))

    def _remove(self, names: Iterable[str], before: Callable[[], None]) -> None:
        for name in sorted(names, key=rank, reverse=True):  # a checkpoint's sums before its contents
            before()
            self.bucket.remove([name])
            self._files.forget([name])

    def _here(self, groups: Iterable[str]) -> Iterator[tuple[str, tuple[int, int]]]:
        """Size and time of each file of the groups."""
        for group in groups:
            place = self.folder / group
            for path in place.rglob("*") if place.is_dir() else (place,):
                name = path.relative_to(self.folder).as_posix()
                if not is_data(name) or group_of(name) != group:
                    continue
                try:
                    found = path.stat()
                except FileNotFoundError:
                    continue
                if path.is_file():
                    yield name, (found.st_size, found.st_mtime_ns)

    def _pull_group(
        self, group: str, names: list[str], there: Mapping[str, Object], known: Mapping[str, Known]
    ) -> None:
        """Make a group what it is there, unless nobody has changed it there since."""
        if all(self._is_as_known(name, there, known) for name in names):
            return
        here = dict(self._here([group]))
        for name in here.keys() - there.keys():
            if not name.startswith(PAID) and not name.endswith(LOG):
                (self.folder / name).unlink(missing_ok=True)
        for path in sorted((self.folder / group).rglob("*"), reverse=True):
            if path.is_dir() and not any(path.iterdir()):
                path.rmdir()
        self._files.forget([name for name in known if group_of(name) == group and name not in there])
        for name in sorted(there.keys() & set(names), key=rank):
            if name not in known or known[name] != (there[name].version, *here.get(name, ())):
                self._fetch(name, there[name])

    def _is_as_known(self, name: str, there: Mapping[str, Object], known: Mapping[str, Known]) -> bool:
        is_same = name in there and name in known and there[name].version == known[name].version
        return is_same and ((self.folder / name).is_file() or self._is_given_up(self.folder / name))

    @staticmethod
    def _is_given_up(path: Path) -> bool:
        """Whether it is of a checkpoint that is not here any more because a later one is."""
        store = path.parent.parent
        if store.name != CHECKPOINTS or (path.name != SUMS and path.with_name(SUMS).exists()):
            return False
        return any(one.parent.name > path.parent.name for one in store.glob(f"iteration=*/{SUMS}"))

    def _fetch(self, name: str, there: Object) -> None:
        path = self.folder / name
        more = b""
        with self._beside(path) as new:
            if not self.bucket.fetch(name, new):
                return  # removed since it was listed: the next look sees more
            if name.startswith(PAID) and path.is_file():
                more = missing(path.read_bytes(), new.read_bytes())
            if more:
                with new.open("ab") as file:
                    file.write(more)
            when = there.written - self.bucket.skew
            os.utime(new, (when, when))
            found = new.stat()
            os.replace(new, path)
        # with lines of ours it is another one than there, and brought there with the next push
        self._files.note(name, Known(there.version, found.st_size - len(more), found.st_mtime_ns))

    @contextmanager
    def _beside(self, path: Path) -> Iterator[Path]:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.{os.getpid()}.fetched")
        try:
            yield new
        finally:
            new.unlink(missing_ok=True)

    def _pull_leases(self, leases: Mapping[str, Object], known: Mapping[str, Known]) -> None:
        """Who works on what, so that it can be told from who has been lost."""
        for name, one in leases.items():
            if name not in known or known[name].version != one.version:
                self.bucket.learn_time()
                self._fetch(name, one)
        over = [name for name in known if name.endswith(f"/{LEASE}") and name not in leases]
        for name in over:
            (self.folder / name).unlink(missing_ok=True)
        self._files.forget(over)

    def _refuse_emptied(self, objects: Mapping[str, Object], known: Mapping[str, Known]) -> None:
        if any(map(is_data, known)) and not any(map(is_data, objects)):
            raise UserError(
                f"{self.bucket.address} is empty, and {self.folder} holds what was there: to bring it back, copy it "
                "there; to begin anew, remove that folder"
            )

    def _is_free(self, group: str) -> bool:
        with self._unless_written(group) as is_free:
            return is_free

    @contextmanager
    def _unless_written(self, group: str) -> Iterator[bool]:
        """Whether no other process of this machine writes a group; none begins to within the block."""
        if group in self._claims:
            yield True
            return
        number = self._opened(group)
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
        finally:
            os.close(number)

    @contextmanager
    def _alone(self, what: str) -> Iterator[None]:
        number = self._opened(what)
        try:
            fcntl.flock(number, fcntl.LOCK_EX)
            yield
        finally:
            os.close(number)

    def _opened(self, what: str) -> int:
        return os.open(self._own / f"{what.replace('/', '+')}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
