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


def completion(
    text: str | None, tokens: tuple[int, int] | None = (100, 20), refusal: str | None = None
) -> Answer:
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


class ChatService:
    """Chat completions over HTTP on the loopback: a script says what becomes of each request."""

    def __init__(self) -> None:
        self.script: Callable[[int, dict[str, Any]], Answer] = lambda n, payload: completion(verdict("1"))
        self.received: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.times: list[float] = []
        self._lock = threading.Lock()
        service = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                service.answer(self)

            def log_message(self, *args: object) -> None:
                """Stay silent."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        payload = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
        with self._lock:
            self.received.append(payload)
            self.headers.append(dict(handler.headers))
            self.times.append(time.monotonic())
            n = len(self.received)
        answer = self.script(n, payload)
        if answer.delay_s:
            time.sleep(answer.delay_s)
        if answer.drop:
            handler.close_connection = True
            return
        body = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            handler.send_response(answer.status)
            handler.send_header("content-type", "application/json")
            handler.send_header("content-length", str(len(body) + answer.announce))
            for name, value in answer.headers.items():
                handler.send_header(name, value)
            handler.end_headers()
            handler.wfile.write(body)
        handler.close_connection = handler.close_connection or answer.announce > 0

    def texts(self) -> list[dict[str, str]]:
        """The JSON objects that the user messages carried."""
        return [json.loads(payload["messages"][1]["content"]) for payload in self.received]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
