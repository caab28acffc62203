"""Makes the pictures of ``docs/images`` again: the report, MLflow's pages and Kedro-Viz of a finished study.

    .venv/bin/python docs/screenshots.py                  # of this project
    .venv/bin/python docs/screenshots.py --project ../other --out ../pictures

Needs the extras ``test`` and ``viz``, and Chromium.
"""

import argparse
import functools
import http.server
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
SIZE = {"width": 1440, "height": 900}
PATIENCE = 300_000
"""Milliseconds that a page has to show what it is asked for."""


@contextmanager
def browser():
    """A page in a headless Chromium."""
    from playwright.sync_api import sync_playwright

    names = ("chromium", "chromium-browser", "google-chrome")
    path = next(filter(None, map(shutil.which, names)), None)
    if path is None:
        sys.exit(f"no browser: install one of {', '.join(names)}")
    with sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield chromium.new_page(viewport=SIZE)
        chromium.close()


@contextmanager
def mlflow_pages(project, port):
    """The address that ``kedro study ui`` prints, while it runs."""
    words = [sys.executable, "-m", "kedro", "study", "ui", "--port", str(port)]
    server = subprocess.Popen(words, cwd=project, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        yield next(line for line in server.stdout if line.startswith("The arms")).partition(": ")[2].strip()
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def report(page, project, out):
    """The first screen, by day and by night, and the answers."""
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto((project / "data/08_reporting/report.html").as_uri())
        page.wait_for_selector("[data-figure=wins].js-plotly-plot", timeout=PATIENCE)
        page.screenshot(path=out / f"report-{scheme}.png")
    page.emulate_media(color_scheme="light")
    page.locator("#answers").scroll_into_view_if_needed()
    page.locator("#answers").screenshot(path=out / "report-answers.png")


def mlflow(page, project, out, port):
    """The arms as a table and as charts, and the calls of the judge."""
    with mlflow_pages(project, port) as arms:
        deadline = time.monotonic() + PATIENCE / 1000
        while time.monotonic() < deadline:
            try:
                page.goto(arms)
                break
            except Exception as error:
                if "ERR_CONNECTION_REFUSED" not in str(error):
                    raise
                time.sleep(1)
        for name, suffix in (("mlflow-arms", ""), ("mlflow-charts", "&compareRunsMode=CHART")):
            page.goto(arms + suffix)
            page.get_by_text(re.compile(r"^(ppo|grpo)-seed\d+$")).first.wait_for(timeout=PATIENCE)
            _dismiss(page, "Close")
            page.wait_for_timeout(6000)
            page.screenshot(path=out / f"{name}.png")
        page.goto(re.sub(r"/runs\?.*", "/traces", arms))
        page.get_by_text("first answer").first.wait_for(timeout=PATIENCE)
        page.wait_for_timeout(3000)
        _dismiss(page, "Got it")
        page.wait_for_timeout(1000)
        page.screenshot(path=out / "mlflow-judge.png")


def _dismiss(page, name):
    """MLflow's own side panel takes a quarter of the page, and its hints darken it."""
    button = page.get_by_role("button", name=name).last
    if button.is_visible():
        button.click()


def viz(page, project, out):
    """The pipeline of one arm, from the static build."""
    subprocess.run([sys.executable, "-m", "kedro", "viz", "build", "--include-previews"], cwd=project, check=True)
    serve = functools.partial(Quiet, directory=str(project / "build"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page.add_init_script("localStorage.KedroViz = JSON.stringify({showFeatureHints: false})")
        page.goto(f"http://127.0.0.1:{server.server_port}/?pid=grpo")
        page.wait_for_selector(".pipeline-node", timeout=PATIENCE)
        page.wait_for_timeout(4000)
        page.screenshot(path=out / "viz.png")
        server.shutdown()


class Quiet(http.server.SimpleHTTPRequestHandler):
    """A server of files that says nothing."""

    def log_message(self, *words):
        """Nothing."""


def main():
    """Make all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=ROOT)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    parser.add_argument("--port", type=int, default=5067)
    parser.add_argument("--only", choices=("report", "mlflow", "viz"))
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    project = asked.project.resolve()
    with browser() as page:
        if asked.only in (None, "report"):
            report(page, project, asked.out)
        if asked.only in (None, "mlflow"):
            mlflow(page, project, asked.out, asked.port)
        if asked.only in (None, "viz"):
            viz(page, project, asked.out)


if __name__ == "__main__":
    main()
