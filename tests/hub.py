"""A model hub on the loopback that holds one pinned data set, answering as far as its clients ask."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

REVISION = "a" * 40


def _entries(files: dict[str, bytes], folder: str) -> list[dict[str, Any]]:
    """What lies right in ``folder``: files with their sizes, and folders."""
    inside = {name[len(folder) :].lstrip("/"): data for name, data in files.items() if name.startswith(folder)}
    found: dict[str, dict[str, Any]] = {}
    for name, data in inside.items():
        head, _, rest = name.partition("/")
        path = f"{folder}/{head}".lstrip("/")
        kind = {"type": "directory"} if rest else {"type": "file", "size": len(data)}
        found[path] = {"path": path, "oid": "b" * 40, **kind}
    return list(found.values())


@contextmanager
def dataset_hub(repository: str, files: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """(address, requests so far) of a hub that has ``repository`` at ``REVISION`` and nothing else."""
    asked: list[str] = []
    api, resolve = f"/api/datasets/{repository}", f"/datasets/{repository}/resolve/{REVISION}/"

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = urlsplit(self.path).path
            asked.append(f"{self.command} {path}")
            if path.startswith(f"{api}/tree/{REVISION}"):
                found = _entries(files, path.removeprefix(f"{api}/tree/{REVISION}").strip("/"))
                self.answer(json.dumps(found).encode())
            elif path in (f"{api}/revision/{REVISION}", api):
                siblings = [{"rfilename": name} for name in files]
                self.answer(json.dumps({"id": repository, "sha": REVISION, "siblings": siblings}).encode())
            elif path.startswith(resolve) and path.removeprefix(resolve) in files:
                self.answer(files[path.removeprefix(resolve)])
            elif path == "/":
                self.answer(b"")
            else:
                self.answer(b"", 404, {"X-Error-Code": "EntryNotFound" if repository in path else "RepoNotFound"})

        do_HEAD = do_GET

        def answer(self, body: bytes, status: int = 200, more: dict[str, str] | None = None) -> None:
            tag = {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": REVISION}
            self.send_response(status)
            for key, value in {**tag, "Content-Length": str(len(body)), **(more or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *words: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
