"""A hub that refuses: one message each, that says what to do. The hub is a server on the loopback."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from gemma_alignment.errors import UserError
from gemma_alignment.modeling.hub import check_access
from gemma_alignment.modeling.loading import load_base, load_chat
from gemma_alignment.modeling.saving import HubReference
from gemma_alignment.pipelines.data_processing.nodes import train_tokenizer

ANSWERS = {
    "org/gated": (403, {"X-Error-Code": "GatedRepo"}),
    "org/missing": (404, {"X-Error-Code": "RepoNotFound"}),
    "org/moved": (404, {"X-Error-Code": "RevisionNotFound"}),
    "org/locked": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "org/broken": (500, {}),
}
SECRET = "hf_not_a_real_token"


class Hub(BaseHTTPRequestHandler):
    """Answers as the real one does, by repository."""

    def do_HEAD(self) -> None:
        name = "/".join(self.path.strip("/").split("/")[:2])
        status, headers = ANSWERS.get(name, (200, {}))
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *words: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    yield server
    server.shutdown()
    server.server_close()


REFUSALS = [
    ("org/gated", "", r"org/gated is gated, and HF_TOKEN is not set\. Accept .*face\.co/org/gated.*export HF_TOKEN"),
    ("org/gated", SECRET, r"org/gated is gated, and the account of HF_TOKEN has no access.*with that account"),
    ("org/missing", "", r"has no org/missing at revision abc.*Check modeling\.base_model and modeling\.revision"),
    ("org/moved", "", r"has no org/moved at revision abc"),
    ("org/locked", SECRET, r"refuses the token in HF_TOKEN.*mistyped, expired or revoked.*Make a new one"),
    ("org/gated", SECRET + "\u2026", r"HF_TOKEN holds a character that no token has.*copy it again"),
    ("org/broken", "", r"Cannot fetch org/broken at revision abc from the hub"),
]  # fmt: skip


@pytest.mark.parametrize(("repository", "token", "message"), REFUSALS)
def test_a_refusal_of_the_hub_says_what_to_do(hub, monkeypatch, tmp_path, repository, token, message) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    HubReference(repository, "abc").save_pretrained(str(tmp_path))
    modeling = {"base_model": repository, "revision": "abc"}
    ways = [
        lambda: check_access(repository, "abc"),
        lambda: load_base(str(tmp_path), "none", "float32", "cpu"),
        lambda: load_chat(str(tmp_path)),
        lambda: train_tokenizer([], {"vocabulary_size": 1000}, modeling, {"source": "huggingface"}, 1),
    ]
    for way in ways:
        with pytest.raises(UserError, match=message) as error:
            way()
        assert SECRET not in str(error.value)
        assert len(str(error.value).splitlines()) == 1


def test_a_silent_hub_is_no_network(hub, monkeypatch) -> None:
    hub.shutdown()
    hub.server_close()
    with pytest.raises(UserError, match=r"org/any was never downloaded .* hub does not answer\. Connect .*HF_HOME"):
        check_access("org/any", "abc")


def test_a_model_in_the_cache_needs_no_hub(hub, monkeypatch, tmp_path) -> None:
    """All of it: one whose tokenizer was fetched, or only half of whose weights were, is not there."""
    config = tmp_path / "config.json"
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *where, **more: str(config))
    hub.shutdown()
    hub.server_close()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def refuses() -> None:
        with pytest.raises(UserError, match="org/gated was never downloaded"):
            check_access("org/gated", "abc")

    refuses()
    (tmp_path / "model.safetensors").touch()
    check_access("org/gated", "abc")
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = {"weight_map": dict(zip("ab", names, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / names[0]).touch()
    refuses()
    (tmp_path / names[1]).touch()
    check_access("org/gated", "abc")
