"""Objects under one address, by fsspec: the few verbs that a mirror needs, and errors that say what to do."""

import json
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from gemma_alignment.errors import UserError, brief, chain, let_through
from gemma_alignment.redaction import scrubbed
from gemma_alignment.storage.address import CREDENTIALS, plain

EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}
"""Protocol -> the extra of this package that brings it."""
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "s3": {"config_kwargs": {"connect_timeout": 10, "read_timeout": 60, "retries": {"max_attempts": 3}}},
    "local": {"auto_mkdir": True},
}
"""What fsspec is told beyond what the environment says."""
VERSIONS = ("ETag", "etag", "generation", "md5Hash", "mtime", "created")
"""What stores call that which another content changes, the best first."""
TIMES = ("LastModified", "updated", "mtime", "created", "last_modified")
PROBE = ".probe-"
REFUSED = ("AccessDenied", "Forbidden", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "401", "403")


class Object(NamedTuple):
    """One object, as a listing tells of it."""

    version: str
    """Another one for another content."""
    written: float
    """Seconds since 1970, by the store's clock."""


class Unreachable(UserError):
    """The store cannot be used; the message says why and what to do."""


class Away(Unreachable):
    """It does not answer, or with an error of its own: later it may."""


@dataclass
class Bucket:
    """The objects under ``address``, by their names relative to it."""

    address: str
    skew: float = 0.0
    """Seconds by which the store's clock is ahead of this machine's."""
    _is_timed: bool = False

    def __post_init__(self) -> None:
        import fsspec

        self.address = plain(self.address)
        scheme = self.address.partition("://")[0]
        options = OPTIONS.get(EXTRAS.get(scheme, scheme), {})
        with self._said("open"):
            try:
                self._fs, root = fsspec.core.url_to_fs(
                    self.address, use_listings_cache=False, skip_instance_cache=True, **options
                )
            except ImportError as error:
                extra, kind = EXTRAS.get(scheme), f"{scheme}://"
                what = f"pip install 'gemma_alignment[{extra}]'" if extra else f"install what fsspec needs for {kind}"
                raise UserError(f"{self.address}: {kind} needs packages that are not installed: {what}") from error
        self._root = root.rstrip("/")

    def listing(self) -> dict[str, Object]:
        """Every object, by its name; not those whose keys are no names of files under a folder.

        Raises:
            Unreachable: when it cannot be read.
        """
        with self._said("list"):
            self._fs.invalidate_cache()
            try:
                found = self._fs.find(self._root, detail=True)
            except FileNotFoundError:
                self._fs.ls(self._root.partition("/")[0])  # nothing there yet, or not even the bucket?
                found = {}
        names = {key: key.removeprefix(f"{self._root}/") for key in found if key.startswith(f"{self._root}/")}
        return {name: _object(found[key]) for key, name in names.items() if _is_name(name)}

    def fetch(self, name: str, path: Path) -> bool:
        """Bring an object to a path; False where it is not there any more."""
        with self._said("read"):
            try:
                self._fs.get_file(self._at(name), str(path))
            except FileNotFoundError:
                return False
        return True

    def send(self, name: str, path: Path) -> Object | None:
        """Bring a file there; None where it is not here any more."""
        with self._said("write"):
            try:
                self._fs.put_file(str(path), self._at(name))
            except FileNotFoundError:
                if path.exists():
                    raise
                return None
            return self._told(name)

    def read(self, name: str) -> bytes | None:
        """The content of an object; None where there is none."""
        with self._said("read"):
            try:
                return bytes(self._fs.cat_file(self._at(name)))
            except FileNotFoundError:
                return None

    def written(self, name: str) -> float | None:
        """When an object was written, by the store's clock; None where there is none."""
        with self._said("read"):
            try:
                return self._told(name).written
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Put a content there, whatever was there."""
        with self._said("write"):
            self._fs.pipe_file(self._at(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Put a content where there is nothing; whether there was nothing. Atomic where the store can do that."""
        with self._said("write"):
            try:
                with self._fs.open(self._at(name), "xb") as file:
                    file.write(content)
            except FileExistsError:
                return False
        return True

    def remove(self, names: list[str]) -> None:
        """Remove objects; those that are not there are no error."""
        with self._said("remove"):
            for name in names:
                with suppress(FileNotFoundError):
                    self._fs.rm_file(self._at(name))

    def check(self) -> None:
        """Refuse a store that cannot be read, written and cleared by whoever runs this; learn what its clock says.

        Raises:
            UserError: with what is missing.
        """
        with self._probed() as (probe, content):
            if self.read(probe) != content:
                raise Unreachable(f"{self.address} does not give back what was just written to it; see its rules")
            self.listing()

    def learn_time(self) -> None:
        """Learn what its clock says, unless that is known; for who may not write there, it is taken for this one's."""
        if not self._is_timed:
            with suppress(Unreachable), self._probed():
                pass

    @contextmanager
    def _probed(self) -> Iterator[tuple[str, bytes]]:
        """The name and content of an object that is there for as long as the block runs, and dated by the store."""
        probe, content = f"{PROBE}{uuid.uuid4().hex}", json.dumps({"checked": time.time()}).encode()
        before = time.time()
        self.write(probe, content)
        try:
            self.skew = (self.written(probe) or before) - before
            self._is_timed = True
            yield probe, content
        finally:
            self.remove([probe])

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _told(self, name: str) -> Object:
        self._fs.invalidate_cache()
        return _object(self._fs.info(self._at(name)))

    @contextmanager
    def _said(self, verb: str) -> Iterator[None]:
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            let_through(error)
            what, refusal = f"{self.address} cannot be {VERBS[verb]}", _refusal(error)
            if refusal is not None:
                raise Unreachable(scrubbed(f"{what}: {refusal}")) from None  # a library's error may hold a key
            cure = "Check the network, AWS_ENDPOINT_URL (a store of one's own) and data_root"
            raise Away(scrubbed(f"{what} ({brief(error)}). {cure}")) from None


def _refusal(error: Exception) -> str | None:
    """Why the store would say no again, and what to do; None where it may be well later."""
    names = [type(one).__name__ for one in chain(error)]
    text = " ".join(f"{type(one).__name__} {one}" for one in chain(error))
    if any("Credentials" in name for name in names):
        return (
            f"there are no credentials. Give them by the environment ({CREDENTIALS}), on every machine of the study"
        )
    if any(isinstance(one, PermissionError) for one in chain(error)) or any(word in text for word in REFUSED):
        return (
            f"the store refuses it to these credentials ({brief(error)}). A study needs the right to list, read, "
            "write and delete under that address"
        )
    if any(isinstance(one, FileNotFoundError) for one in chain(error)) or "NoSuchBucket" in text:
        return "there is no such bucket. Make it first, or correct data_root"
    return None


VERBS = {"open": "opened", "list": "listed", "read": "read", "write": "written", "remove": "cleared"}


def _is_name(name: str) -> bool:
    """Whether each part is one of a file's name; a key of a store may be ``a//b``, or climb by ``..``."""
    return not {"", ".", ".."} & set(name.split("/"))


def _object(facts: Mapping[str, Any]) -> Object:
    version = next((facts[name] for name in VERSIONS if facts.get(name)), "")
    when = next((facts[name] for name in TIMES if facts.get(name)), 0.0)
    told = version.timestamp() if isinstance(version, datetime) else version
    return Object(f"{told}/{facts.get('size')}", _seconds(when))


def _seconds(when: Any) -> float:
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    return when.timestamp() if isinstance(when, datetime) else float(when)
