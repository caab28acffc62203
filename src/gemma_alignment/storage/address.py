"""Where the data of a study are: a folder, or a bucket and the folder of this machine in which it is worked on."""

import hashlib
import os
import re
import socket
from pathlib import Path
from urllib.parse import unquote, urlsplit

LOCAL = "file://"
CACHE = "XDG_CACHE_HOME"
"""Variable of the folder under which working folders are; without it ``~/.cache``."""
STORES = ("s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "local")
"""Protocols of fsspec that write object by object, to what every process sees; ``local`` is a folder that plays one."""

CREDENTIALS = (
    "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; GOOGLE_APPLICATION_CREDENTIALS; "
    "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
)
"""The variables that the clients of these stores read them from."""


def plain(data_root: str) -> str:
    """``file:///x`` as ``/x``, a bucket without the slash at its end, anything else as it is."""
    if is_bucket(data_root):
        return data_root.rstrip("/")
    return data_root.removeprefix(LOCAL)


def is_bucket(data_root: str) -> bool:
    """Whether it is the address of an object store; ``file://`` is a folder."""
    return "://" in data_root and not data_root.startswith(LOCAL)


def check_address(data_root: str) -> None:
    """Refuse an address that holds credentials, names no bucket, or is of a kind that cannot be worked on.

    Raises:
        ValueError: with what to give instead; what may be a secret is not in it.
    """
    if data_root.startswith(LOCAL) and not data_root.startswith(f"{LOCAL}/"):
        raise ValueError(f"data_root is {data_root!r}: the address of a folder has three slashes, file:///FOLDER")
    if not is_bucket(data_root):
        return
    scheme, _, rest = data_root.partition("://")
    host = rest.partition("/")[0]
    if "@" in rest or ":" in host or "?" in rest or "#" in rest:
        raise ValueError(
            f"data_root is an address of {scheme}:// with more in it than a bucket and a folder. Credentials are never "
            "part of it: it stands in records, logs and MLflow. Give them by the environment "
            f"({CREDENTIALS}), a server by AWS_ENDPOINT_URL"
        )
    if scheme not in STORES:
        kinds = "give s3://, gs:// or a path"
        raise ValueError(f"data_root is {data_root!r}: {scheme}:// is no storage to work on; {kinds}")
    parts = unquote(urlsplit(data_root).path).split("/")
    if not rest.strip("/") or any(part in (".", "..") for part in parts) or "//" in rest or "\\" in rest:
        raise ValueError(f"data_root is {data_root!r}, but must be {scheme}://BUCKET/FOLDER")


def working_folder(address: str) -> Path:
    """The folder of this machine in which a bucket is worked on: one for each address, under the user's cache.

    The machine's name is part of it: several may share a home, and each has to have a copy of its own.
    """
    name = re.sub(r"[^A-Za-z0-9.]+", "-", address.partition("://")[2]).strip("-.")[-60:]
    code = hashlib.sha256(plain(address).encode()).hexdigest()[:12]
    cache = os.environ.get(CACHE) or Path.home() / ".cache"
    return Path(cache).absolute() / "gemma-alignment" / socket.gethostname() / f"{name}-{code}"


def folder_of(data_root: str) -> str:
    """The folder in which this machine reads and writes the data: for the catalog, whose paths begin with it."""
    return str(working_folder(data_root)) if is_bucket(data_root) else data_root.removeprefix(LOCAL)


def folder_under(project: Path, data_root: object) -> Path:
    """The same as a path; a relative one is relative to the project."""
    return Path(project) / folder_of(str(data_root))
