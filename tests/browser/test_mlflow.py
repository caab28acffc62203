"""MLflow's pages on a finished study: which method, which seed, how far, without any set-up."""

import os
import re
import signal
import subprocess
import sys
import time
import urllib.request

import pytest
from ports import free_port

from gemma_alignment.study import view

pytestmark = pytest.mark.pipeline
NOT_OURS = "404"
"""MLflow's own pages ask for a user where nobody logs in, and say so."""


@pytest.fixture(scope="module")
def pages(toy_study, tmp_path_factory):
    """The command behind ``make ui``, started and stopped: the address that it prints."""
    port = free_port()
    log = tmp_path_factory.mktemp("ui") / "log"
    words = [sys.executable, "-m", "kedro", "study", "ui", "--port", str(port)]
    with log.open("wb") as output:
        server = subprocess.Popen(
            words, cwd=toy_study.root, env=toy_study.environment({}), stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        _wait(f"http://127.0.0.1:{port}/health", server, log)
        (line,) = [one for one in log.read_text().splitlines() if one.startswith("The arms side by side: ")]
        yield line.partition(": ")[2]
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def _wait(address, server, log):
    deadline = time.monotonic() + 400
    while time.monotonic() < deadline:
        assert server.poll() is None, log.read_text()
        try:
            with urllib.request.urlopen(address, timeout=5) as reply:  # noqa: S310 - our own server
                if reply.status == 200:
                    return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server did not come up: {log.read_text()}")


def errors(page):
    return [said for said in page.said if NOT_OURS not in said]


def test_the_printed_address_shows_the_arms_with_the_columns_that_matter(pages, opened):
    page = opened(pages)
    for name in ("ppo-seed42", "grpo-seed42"):
        page.get_by_text(name, exact=True).first.wait_for(timeout=240_000)
    assert page.get_by_text("sft", exact=True).count() == 0, "the filter leaves the arms alone"
    for column in ("eval/gold_mean", "eval/kl_to_reference", "eval/score_mean"):
        assert page.get_by_text(column, exact=True).count() > 0, column
    assert errors(page) == []


def test_the_view_of_a_study_has_method_seed_and_budget_too(pages, opened, toy_study):
    """The toy study was made outside of any, which the tag says by ``none``."""
    view.share(toy_study.client, re.search(r"experiments/(\d+)", pages)[1], "none")
    page = opened(pages.replace("=arms", "=none"), viewport={"width": 1440, "height": 900})
    page.get_by_text("grpo-seed42", exact=True).first.wait_for(timeout=240_000)
    for column in ("budget/responses", "eval/gold_mean", "eval/kl_to_reference", "eval/score_mean", "method", "seed"):
        page.get_by_text(column, exact=True).first.wait_for(timeout=60_000)
    assert errors(page) == []


def test_the_run_of_the_study_holds_the_report_and_its_figures(pages, opened, toy_study):
    (session,) = [run for run in toy_study.runs() if run.data.tags["stage"] == "session"]
    server, experiment = pages.partition("/#/")[0], session.info.experiment_id
    page = opened(f"{server}/#/experiments/{experiment}/runs/{session.info.run_id}/artifacts")
    for name in ("report.html", "comparison.json", "figures"):
        page.get_by_text(name, exact=True).first.wait_for(timeout=240_000)
    assert errors(page) == []


def test_the_calls_of_the_judge_are_traces_of_its_run(pages, opened, toy_study):
    (judged,) = [run for run in toy_study.runs() if run.info.run_name == "evaluation"]
    server, experiment = pages.partition("/#/")[0], judged.info.experiment_id
    page = opened(f"{server}/#/experiments/{experiment}/runs/{judged.info.run_id}/traces")
    page.get_by_text("first answer").first.wait_for(timeout=240_000)
    assert errors(page) == []
