"""The static build of Kedro-Viz: every pipeline, its layers, and a preview."""

import functools
import http.server
import threading

import pytest

pytestmark = pytest.mark.pipeline


@pytest.fixture(scope="module")
def built(toy_study):
    """``kedro viz build`` on a finished study, served from its folder."""
    pytest.importorskip("kedro_viz", reason="comes with the viz extra")
    code, text = toy_study.command("kedro", "viz", "build", "--include-previews")
    assert code == 0, text
    serve = functools.partial(Quiet, directory=str(toy_study.root / "build"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *words):
        """Say nothing."""


def test_the_graph_is_drawn_with_its_layers(built, opened):
    page = opened(built)
    page.locator(".pipeline-node").first.wait_for(timeout=90_000)
    layers = {text.strip().lower() for text in page.locator(".pipeline-layer-name").all_inner_texts()}
    assert {"raw", "primary", "models", "model_output", "reporting"} <= {name.replace(" ", "_") for name in layers}
    page.get_by_text("Train Grpo").first.wait_for(timeout=30_000)
    assert page.said == []
