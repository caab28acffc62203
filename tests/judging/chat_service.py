"""A chat-completion service on the loopback that does what a test tells it to, faults included."""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def verdict(slot: str) -> str:
    return json.dumps({"reason": "because", "verdict": slot})


@dataclass
class Answer:
    """What the service of the tests does with one request."""

    status: int = 200
    body: object = None
    """JSON, or bytes sent as they are."""
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    drop: bool = False
    """Close the connection without a word."""
    announce: int = 0
    """So many more bytes are announced than sent: the connection breaks inside the body."""
    drip_s: float = 0.0
    """Send the body a byte at a time, with so long a pause between two."""
    drip_head_s: float = 0.0
    """Send the head a byte at a time, with so long a pause between two."""


def completion(text: str | None, tokens: tuple[int, int] | None = (100, 20), refusal: str | None = None) -> Answer:
    usage = tokens and {
        "prompt_tokens": tokens[0],
        "completion_tokens": tokens[1],
        "total_tokens": sum(tokens),
    }
    message = {"role": "assistant", "content": text, "refusal": refusal}
    body = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "gpt-4o-mini-2024-07-18",
        "system_fingerprint": "fp_1",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message, "logprobs": None}],
        "usage": usage,
    }
    return Answer(body=body)


def error(status: int, code: str | None = None, message: str = "something", **headers: str) -> Answer:
    return Answer(
        status,
        {"error": {"message": message, "type": code, "code": code, "param": None}},
        {name.replace("_", "-"): value for name, value in headers.items()},
    )


class Loopback:
    """An HTTP server on the loopback for the length of a test."""

    def __init__(self) -> None:
        handle = self.handle

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                handle(self, self.rfile.read(int(self.headers["content-length"])))

            def do_GET(self) -> None:
                handle(self, b"")

            def log_message(self, *args: object) -> None:
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def handle(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def send(handler: BaseHTTPRequestHandler, answer: Answer) -> None:
    if answer.delay_s:
        time.sleep(answer.delay_s)
    if answer.drop:
        handler.close_connection = True
        return
    body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        if answer.drip_head_s:
            head = f"HTTP/1.1 {answer.status} OK\r\ncontent-length: {len(body)}\r\n\r\n".encode()
            drip(handler, head, answer.drip_head_s)
            handler.wfile.write(body)
            return
        handler.send_response(answer.status)
        handler.send_header("content-type", "application/json")
        handler.send_header("content-length", str(len(body) + answer.announce))
        for name, value in answer.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        drip(handler, body, answer.drip_s)
    handler.close_connection = handler.close_connection or answer.announce > 0


def drip(handler: BaseHTTPRequestHandler, content: bytes, pause_s: float) -> None:
    for piece in ([content] if not pause_s else [content[i : i + 1] for i in range(len(content))]):
        handler.wfile.write(piece)
        time.sleep(pause_s)


class ChatService(Loopback):
    """Chat completions: a script says what becomes of each request."""

    def __init__(self) -> None:
        self.script: Callable[[int, dict[str, Any]], Answer] = lambda n, payload: completion(verdict("1"))
        self.received: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self._lock = threading.Lock()
        super().__init__()

    def handle(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
        payload = json.loads(content)
        with self._lock:
            self.received.append(payload)
            self.headers.append(dict(handler.headers))
            self.times.append(time.monotonic())
            n = len(self.received)
        send(handler, self.script(n, payload))

    def texts(self) -> list[dict[str, str]]:
        """The JSON objects that the user messages carried."""
        return [json.loads(payload["messages"][1]["content"]) for payload in self.received]


class BatchService(Loopback):
    """Files and batches: a batch ends at its second look, with the lines that a script lets through."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.looks: dict[str, int] = {}
        self.faults: list[tuple[str, Answer]] = []
        """(start of "METHOD /path", answer): each is used up once, instead of the true answer."""
        self.after_faults: set[str] = set()
        """Starts whose fault strikes after the work was done: the answer alone is lost."""
        self.delays: dict[str, float] = {}
        """Start -> seconds that pass before the work on such a call begins."""
        self.calls: list[str] = []
        self.say: Callable[[dict[str, Any]], str | Answer | None] = lambda body: verdict("1")
        """The verdict on a request's body, or the error that it meets; None: it expires."""
        self.ends: Callable[[dict[str, Any]], str] = lambda batch: "completed"
        self._lock = threading.Lock()
        super().__init__()

    def handle(self, handler: BaseHTTPRequestHandler, content: bytes) -> None:
        call = f"{handler.command} {handler.path.removeprefix('/v1')}"
        self.calls.append(call)
        time.sleep(next((seconds for start, seconds in self.delays.items() if call.startswith(start)), 0.0))
        with self._lock:
            fault = next((f for f in self.faults if call.startswith(f[0])), None)
            if fault is not None:
                self.faults.remove(fault)
            if fault is None or fault[0] in self.after_faults:
                answer = self._work(call, content)
        send(handler, answer if fault is None else fault[1])

    def _work(self, call: str, content: bytes) -> Answer:
        if call.startswith("POST /files"):
            name = f"file-{len(self.files)}"
            self.files[name] = b"\n".join(line for line in content.split(b"\n") if line.startswith(b"{"))
            return Answer(body={"id": name, "object": "file", "purpose": "batch"})
        if call.startswith("POST /batches"):
            name = f"batch-{len(self.batches)}"
            self.batches[name] = {**json.loads(content), "id": name, "object": "batch", "status": "validating"}
            return Answer(body=self.batches[name])
        if call.startswith("GET /batches/"):
            return Answer(body=self._look(self.batches[call.rsplit("/", maxsplit=1)[-1]]))
        if call.startswith("GET /batches"):
            newest_first = list(reversed(self.batches.values()))
            return Answer(body={"object": "list", "data": newest_first, "has_more": False})
        return Answer(body=self.files[call.split("/")[2]])

    def _look(self, batch: dict[str, Any]) -> dict[str, Any]:
        name = batch["id"]
        self.looks[name] = self.looks.get(name, 0) + 1
        if self.looks[name] < 2:
            batch["status"] = "in_progress"
        elif batch["status"] == "in_progress":
            batch["status"] = self.ends(batch)
            lines = [json.loads(line) for line in self.files[batch["input_file_id"]].split(b"\n")]
            if batch["status"] != "failed":
                batch |= self._results(name, lines)
            else:
                batch["errors"] = {"object": "list", "data": [{"code": "bad", "message": "line 1 is no JSON"}]}
        return batch

    def _results(self, name: str, lines: list[dict[str, Any]]) -> dict[str, Any]:
        done, failed = [], []
        for line in reversed(lines):  # the order is not kept
            text = self.say(line["body"])
            if text is None:
                error = {"code": "batch_expired", "message": "too late"}
                failed.append({"custom_id": line["custom_id"], "response": None, "error": error})
            elif isinstance(text, Answer):
                response = {"status_code": text.status, "request_id": "r", "body": text.body}
                failed.append({"custom_id": line["custom_id"], "response": response, "error": None})
            else:
                response = {"status_code": 200, "request_id": "r", "body": completion(text).body}
                done.append({"custom_id": line["custom_id"], "response": response, "error": None})
        ids = {}
        for field_, rows in (("output_file_id", done), ("error_file_id", failed)):
            if rows:
                ids[field_] = f"{field_}-{name}"
                self.files[ids[field_]] = "".join(json.dumps(row) + "\n" for row in rows).encode()
        return ids

    def asked(self) -> list[dict[str, Any]]:
        """Every request handed in, batch by batch."""
        files = [self.files[batch["input_file_id"]] for batch in self.batches.values()]
        return [json.loads(line) for content in files for line in content.split(b"\n")]
