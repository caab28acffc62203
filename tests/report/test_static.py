"""The pictures beside the report: every figure of the page, as SVG that any viewer opens."""

import re
from xml.etree import ElementTree

import pytest
from fake_study import REPORTING

from gemma_alignment.pipelines.reporting.nodes import draw_figures
from gemma_alignment.report.figures import forest
from gemma_alignment.report.plotting import Figure
from gemma_alignment.report.static import svg


def specified(*traces, **layout):
    return Figure("one", "A figure", "", {"data": list(traces), "layout": {"xaxis": {}, "yaxis": {}, **layout}})


def words(text):
    root = ElementTree.fromstring(text)  # noqa: S314 - we wrote it
    return {"".join(node.itertext()) for node in root.iter("{http://www.w3.org/2000/svg}text")}


@pytest.fixture(scope="module")
def drawn(made):
    study, comparison = made()
    return draw_figures(comparison, *study.inputs()[:3], REPORTING)[0]


def test_every_figure_of_the_page_has_its_picture(drawn, made):
    import json

    from test_document import Page

    from gemma_alignment.pipelines.reporting.nodes import render_report

    study, comparison = made()
    page = Page(render_report(comparison, *study.inputs()[:3], REPORTING))
    assert list(drawn) == list(json.loads(page.scripts[0])["figures"])


def test_a_picture_says_what_it_shows(drawn):
    forest, wins = words(drawn["forest"]), words(drawn["wins"])
    assert {"Effect sizes", "Reward-model score ↑", "Cohen’s d"} <= forest
    assert {"PPO v GRPO", "100%"} <= wins
    assert "share of 179 to 180 pairs of answers, all seeds" in wins
    assert {"PPO, mean of 3", "GRPO, mean of 3", "Iteration"} <= words(drawn["curve-eval-score-mean"])


def test_a_figure_of_the_first_screen_says_of_how_many(made):
    _, comparison = made()
    found = forest(comparison)
    assert found is not None and "intervals over 3 seeds a method" in found.caption
    totals = [block["total"] for block in comparison["win_rates"].values()]
    assert {sum(one[part] for part in ("wins", "ties", "losses")) for one in totals} == {179, 180}


def test_equal_figures_give_equal_bytes_and_no_date():
    one = specified({"type": "scatter", "mode": "lines", "x": [1, 2], "y": [3, 4]})
    assert svg(one) == svg(one)
    assert "dc:date" not in svg(one)


def test_bars_stand_on_each_other():
    part = {"type": "bar", "orientation": "h", "y": ["a"], "marker": {"color": ["#112233"]}}
    text = svg(specified({**part, "x": [30]}, {**part, "x": [70]}, barmode="stack", xaxis={"range": [0, 100]}))
    paths = re.findall(r'd="M ([\d.]+) [\d.]+\s+L ([\d.]+) [^"]*"[^>]*style="fill: #112233', text.replace("\n", " "))
    (first_start, first_end), (second_start, second_end) = ((float(a), float(b)) for a, b in paths)
    assert first_end == pytest.approx(second_start)
    assert (second_end - second_start) / (first_end - first_start) == pytest.approx(7 / 3, rel=1e-3)


def test_what_comes_on_request_is_not_drawn():
    trace = {"type": "scatter", "mode": "lines", "x": [1, 2], "y": [3, 4]}
    hidden = {**trace, "name": "hidden", "visible": "legendonly"}
    text = svg(specified({**trace, "name": "seen"}, {**trace, "name": "too"}, hidden))
    assert {"seen", "too"} <= words(text)
    assert "hidden" not in words(text)


def test_a_kind_that_nobody_drew_before_is_refused():
    with pytest.raises(ValueError, match="heatmap"):
        svg(specified({"type": "heatmap", "z": [[1]]}))
