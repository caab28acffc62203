"""The static build of Kedro-Viz: every pipeline, its layers, and a preview."""

import functools
import http.server
import json
import threading

import pytest

pytestmark = pytest.mark.pipeline
THEIR_OWN = ("ERR_NAME_NOT_RESOLVED", "ERR_INTERNET_DISCONNECTED", "404", "metadata fetch error")
"""Kedro-Viz's static page asks for a font of the web and for metadata that a build does not have."""


@pytest.fixture(scope="module")
def built(toy_study):
    """``kedro viz build`` on a finished study, served from its folder."""
    pytest.importorskip("kedro_viz", reason="comes with the viz extra")
    code, text = toy_study.command("kedro", "viz", "build", "--include-previews", timeout=600)
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
    page.locator(".pipeline-node").first.wait_for(timeout=240_000)
    layers = {text.strip().lower() for text in page.locator(".pipeline-layer-name").all_inner_texts()}
    assert {"raw", "primary", "models", "model_output", "reporting"} <= {name.replace(" ", "_") for name in layers}
    page.get_by_text("train_grpo").first.wait_for(timeout=30_000)
    assert [said for said in page.said if not any(words in said for words in THEIR_OWN)] == []


def test_rows_numbers_and_figures_have_a_preview(built, opened, toy_study):
    """What the pages show of a dataset stands in the build under its node."""
    nodes = json.loads((toy_study.root / "build" / "api" / "main").read_text())["nodes"]
    shown = {}
    for node in nodes:
        detail = toy_study.root / "build" / "api" / "nodes" / node["id"]
        if node["type"] == "data" and detail.exists():
            found = json.loads(detail.read_text())
            shown[node["name"]] = found.get("preview_type") or found.get("previewType")
    assert shown["preferences_train"] == "TablePreview"
    assert shown["comparison"] == shown["judge_card"] == "JSONPreview"
    assert shown["learning_plot"] == "PlotlyPreview"
    assert shown["report"] is None
