"""The report as a reader meets it: drawn, searched, sorted, printed, on a phone, and checked for accessibility."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "report"))
from fake_study import REPORTING, fake_study

from gemma_alignment.pipelines.reporting.nodes import compare, render_report

PROMPTS = 500


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """The file of a study of six runs and 500 prompts."""
    study = fake_study(prompts=PROMPTS)
    settings = {**REPORTING, "answers_shown": PROMPTS}
    comparison, _ = compare(*study.inputs(None, settings))
    text = render_report(comparison, *study.inputs()[:3], settings, study["judgements"])
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def page(report, opened):
    found = opened(report.as_uri())
    drawn = "document.querySelectorAll('.js-plotly-plot').length === document.querySelectorAll('[data-figure]').length"
    found.wait_for_function(drawn, timeout=60_000)
    return found


def rows(page):
    return page.locator("#answer-table tbody tr:visible")


def test_it_opens_without_a_word_from_the_console_and_fetches_nothing(page, report):
    assert page.said == []
    assert page.fetched == [report.as_uri()]


def test_the_first_screen_holds_question_verdict_forest_and_bars(page):
    for what in ("h1", ".verdict", "[data-figure=forest]", "[data-figure=wins]"):
        box = page.locator(what).bounding_box()
        assert box["y"] < 800, what
    assert "PPO is better than GRPO" in page.locator(".verdict").inner_text()


def test_it_is_there_within_two_seconds(report, opened):
    """Processor time of the page's thread until everything is drawn: a busy machine does not change it much."""
    found = opened("about:blank")
    session = found.context.new_cdp_session(found)
    session.send("Performance.enable", {"timeDomain": "threadTicks"})
    found.goto(report.as_uri(), wait_until="load")
    loaded = {one["name"]: one["value"] for one in session.send("Performance.getMetrics")["metrics"]}
    assert loaded["TaskDuration"] < 2.0
    assert report.stat().st_size < 8_000_000


def test_the_x_axis_is_switched(page):
    value = "document.querySelector('[data-figure=curve-reward-score-mean]').layout.xaxis.title.text"
    assert page.evaluate(value) == "Iteration"
    page.select_option("#axis", "budget/seconds")
    page.wait_for_function(f"{value} === 'Minutes of wall-clock time'")
    last = "document.querySelector('[data-figure=curve-reward-score-mean]').data.at(-1).x.at(-1)"
    assert page.evaluate(last) == pytest.approx(80 * 1.4 / 60, rel=0.01)


def test_the_table_is_searched(page):
    assert rows(page).count() == PROMPTS
    page.fill("#search", "subject 42,")
    assert rows(page).count() == 1
    assert page.locator("#search-count").inner_text() == f"1 of {PROMPTS}"
    page.fill("#search", "no such words")
    assert rows(page).count() == 0


def test_the_table_is_filtered_by_verdict(page):
    page.select_option("#verdict", "PPO beat GRPO")
    shown = page.locator("#answer-table tbody tr:visible td:last-child b").all_inner_texts()
    assert 0 < len(shown) < PROMPTS
    assert set(shown) == {"PPO beat GRPO"}


def test_the_table_is_sorted_both_ways(page):
    def scores():
        every = page.eval_on_selector_all("#answer-table tbody tr", "all => all.map(row => row.dataset.sort)")
        return [float(one.split()[2]) for one in every]

    head = page.locator("#answer-table thead th", has_text="PPO")
    head.locator("button").click()
    assert head.get_attribute("aria-sort") == "descending"
    assert scores() == sorted(scores(), reverse=True)
    head.locator("button").click()
    assert scores() == sorted(scores())


def test_markup_in_an_answer_is_text(page):
    page.fill("#search", "<script>")
    cell = rows(page).first.locator("td").first
    assert "<script>alert('x')</script>" in cell.inner_text()
    assert page.locator("#answer-table script").count() == 0
    assert page.said == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_serious_finding_of_axe(report, opened, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="comes with the test extra")
    found = opened(report.as_uri(), color_scheme=scheme)
    results = axe.Axe().run(found).response["violations"]
    serious = {one["id"]: one["nodes"][0]["html"] for one in results if one["impact"] in ("serious", "critical")}
    assert serious == {}


def test_a_phone_scrolls_in_one_direction_only(report, opened):
    found = opened(report.as_uri(), viewport={"width": 390, "height": 844})
    assert found.evaluate("document.documentElement.scrollWidth") == 390
    assert found.locator("#answer-table td[data-system]").first.evaluate("e => getComputedStyle(e).display") == "block"


def test_paper_shows_everything_on_white(report, opened):
    found = opened(report.as_uri(), color_scheme="dark")
    found.emulate_media(media="print")
    assert found.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not found.locator("#search").is_visible()
    found.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert found.locator("details:not([open])").count() == 0
    assert json.loads(found.locator("#data").inner_text())["figures"].keys() == set(
        found.eval_on_selector_all(".js-plotly-plot", "all => all.map(e => e.dataset.figure)")
    )
