"""The page: what is on it, what is not, and that nothing in it can break out."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import plotly
import plotly.graph_objects as go
import pytest
from fake_study import REPORTING, fake_study

from gemma_alignment.config import build
from gemma_alignment.parameters.reporting import ReportingParameters
from gemma_alignment.pipelines.reporting.nodes import compare, render_report
from gemma_alignment.report import page as whole
from gemma_alignment.report.curves import MOST_POINTS, axes_of, band, curve
from gemma_alignment.report.html import Html, h
from gemma_alignment.report.runs import Run, RunKey

VIEW = "http://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=arms"
VOID = {"meta", "input", "br", "link", "img", "hr"}


class Page(HTMLParser):
    """Text, ids, links and scripts of a page; raises when elements do not close in order."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.ids, self.links, self.scripts, self.text, self.sources = [], [], [], [], [], []
        self.feed(text)
        assert self.open == [], self.open

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if "href" in given else []
        self.sources += [given["src"]] if "src" in given else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.text.append(data)

    @property
    def words(self):
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="session")
def page(made):
    """The page of a study, made once."""
    known = {}

    def make(**arguments):
        key = json.dumps(arguments, default=str)
        if key not in known:
            study, comparison = made(**arguments)
            text = render_report(comparison, *study.inputs()[:3], REPORTING)
            known[key] = text, Page(text)
        return known[key]

    return make


def test_one_file_that_needs_nothing_else(page):
    text, parsed = page()
    assert len(text.encode()) < 8_000_000
    assert parsed.sources == []
    inside = [link for link in parsed.links if link.startswith("#")]
    assert {link[1:] for link in inside} <= set(parsed.ids)
    assert [link for link in parsed.links if link not in inside] == [VIEW]  # to follow, nothing is fetched from it
    assert len(parsed.ids) == len(set(parsed.ids))


def test_the_first_screen_holds_question_verdict_and_uncertainty(page, made):
    _, parsed = page()
    _, c = made()
    start = parsed.words[:1500]
    assert "how do PPO and GRPO compare, and how sure can we be?" in start
    assert "PPO is better than GRPO" in start
    low, high = (f"{100 * c['verdict'][end]:.1f}" for end in ("low", "high"))
    assert f"{low} to {high}%" in start
    assert "80% power begins at d = 3.07" in start


def test_no_word_that_the_numbers_do_not_carry(page):
    for arguments in ({}, {"seeds": (42,)}, {"judged": False, "gold": False}):
        words = page(**arguments)[1].words.lower()
        assert "significant" not in words
        assert not re.search(r"\bnan\b|\binf\b|\bnone\b(?! is picked| that matters|\))", words)


def test_every_p_of_an_exact_test_stands_beside_its_floor(page):
    words = page()[1].words
    assert "(least possible 0.1)" in words
    assert "(least possible 0.25)" in words


def test_answers_cannot_break_out(page):
    text, parsed = page()
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert('x')&lt;/script&gt;" in text
    assert "<script>alert('x')</script> & \"quotes\"" in parsed.words
    assert len(parsed.scripts) == 3


def test_data_cannot_end_its_script():
    text = whole.json_for_script({"a": "</script><!-- \u2028 & 'x'"})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": "</script><!-- \u2028 & 'x'"}


def test_elements_escape_what_is_not_markup():
    made = h("p", "a < b & c", Html("<b>x</b>"), None, title='"q"', hidden=True, class_="k", aria_label=None)
    assert made == '<p title="&quot;q&quot;" hidden class="k">a &lt; b &amp; c<b>x</b></p>'
    assert h("br") == "<br>"


def test_every_figure_is_a_valid_plotly_figure(page):
    _, parsed = page()
    data = json.loads(parsed.scripts[0])
    assert len(data["figures"]) >= 12
    kinds = set()
    for spec in data["figures"].values():
        figure = go.Figure(spec)  # raises on an unknown attribute
        kinds |= {trace.type for trace in figure.data}
    assert kinds <= {"scatter", "bar"}, "the basic bundle draws no other kind"


def test_the_bundle_is_of_the_plotly_that_checks_the_figures():
    full = (Path(plotly.__file__).parent / "package_data" / "plotly.min.js").open(encoding="utf-8").read(300)
    basic = (whole.ASSETS / whole.PLOTLY).read_text(encoding="utf-8")[:300]
    version = re.search(r"v(\d+\.\d+\.\d+)", basic).group(1)
    assert f"v{version}" in full
    assert version in whole.PLOTLY
    assert "MIT" in (whole.ASSETS / "plotly-basic.LICENSE.txt").read_text(encoding="utf-8")


def test_x_axes_can_be_switched(page):
    data = json.loads(page()[1].scripts[0])
    assert list(data["axes"]["labels"]) == [
        "iteration",
        "budget/responses",
        "budget/tokens_generated",
        "budget/flops",
        "budget/seconds",
        "memory/peak_mb",
    ]
    spec = data["figures"]["curve-reward-score-mean"]
    for trace in spec["data"]:
        for axis in list(data["axes"]["labels"])[1:]:
            table = data["axes"]["series"][trace["meta"]][axis]
            assert all(str(i) in table for i in trace["x"])
    assert data["axes"]["series"]["ppo"]["budget/responses"]["80"] == 7680


def test_what_does_not_exist_does_not_appear(page):
    words = page(judged=False, gold=False)[1].words
    assert "true quality" not in words.lower()
    assert "Not judged" in words
    assert "kedro run --pipeline=evaluation --params judge.kind=openai" in words
    assert "sign test" not in words
    assert "The answers were not judged, so the primary outcome" in words
    assert "for new training runs on these prompts, not for new prompts" in words
    assert "Other runs" not in words


def test_one_seed_says_what_it_cannot_show(page):
    words = page(seeds=(42,))[1].words
    assert "cannot be estimated from one seed" in words
    assert "n = 1" in words
    assert "planned, but no such run was found" in words


def test_other_families_are_described(page):
    words = page(families=("ppo", "grpo", "grpo@k4", "rloo"))[1].words
    assert "Other runs" in words
    assert "GRPO@k4" in words


def test_a_study_without_runs_still_has_a_page(page):
    words = page(seeds=())[1].words
    assert "No finished run of either method was found." in words


def test_protocol_fingerprint_and_broken_equality_are_printed(made):
    study = fake_study(judged=False)
    study["files"]["ppo/seed=42"]["run.json"]["fingerprints"]["sft"] = "0" * 64
    from gemma_alignment.pipelines.reporting.nodes import compare

    comparison, _ = compare(*study.inputs())
    words = Page(render_report(comparison, *study.inputs()[:3], REPORTING)).words
    assert comparison["protocol"]["fingerprint"] in words
    assert "NOT held" in words


def test_long_answers_are_cut_and_the_cut_is_shown(made):
    study, comparison = made()
    short = {**REPORTING, "answer_characters": 20, "answers_shown": 2}
    words = Page(render_report(comparison, *study.inputs()[:3], short)).words
    assert "[…]" in words
    assert "The first 2 held-out prompts" in words
    none = Page(render_report(comparison, *study.inputs()[:3], {**REPORTING, "answers_shown": 0}))
    assert "answers" not in none.ids


def test_equal_inputs_give_the_same_page(made):
    study, comparison = made()
    first, second = (render_report(comparison, *study.inputs()[:3], REPORTING) for _ in range(2))
    assert first == second


def run_of(values, key="m"):
    return Run(RunKey("ppo", 1), history=[{"iteration": i, key: v} for i, v in enumerate(values)])


def test_a_long_curve_is_thinned_and_keeps_its_ends():
    line = curve(run_of([float(i) for i in range(1501)]), "m")
    assert len(line.values) <= MOST_POINTS + 1
    assert (line.iterations[0], line.iterations[-1]) == (0, 1500)
    assert curve(run_of([None, float("nan")]), "m") is None


def test_a_band_is_mean_least_and_largest_where_all_seeds_have_values():
    runs = {1: run_of([1.0, 2.0, 3.0]), 2: run_of([3.0, None, 7.0])}
    found = band("ppo", runs, "m")
    assert found.mean.iterations == (0, 2)
    assert (found.mean.values, found.low.values, found.high.values) == ((2.0, 5.0), (1.0, 3.0), (3.0, 7.0))


def test_axes_are_offered_only_where_every_run_has_them():
    with_budget = run_of([1.0, 2.0], "budget/responses")
    assert axes_of({"ppo": {1: with_budget}}).offered() == ["iteration", "budget/responses"]
    assert axes_of({"ppo": {1: with_budget}, "grpo": {1: run_of([1.0])}}).offered() == ["iteration"]


def test_settings_of_the_page_are_read():
    assert build(ReportingParameters, REPORTING, "reporting").answers_shown == 12


def test_curves_of_other_families_come_on_request(page):
    data = json.loads(page(families=("ppo", "grpo", "grpo@k4", "rloo"))[1].scripts[0])
    traces = data["figures"]["curve-eval-score-mean"]["data"]
    hidden = {trace["legendgroup"] for trace in traces if trace.get("visible") == "legendonly"}
    assert hidden == {"grpo@k4", "rloo"}
    assert {trace["legendgroup"] for trace in traces} == {"ppo", "grpo", "grpo@k4", "rloo"}


@pytest.mark.browser
def test_a_browser_draws_every_figure(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no chromium")
    text, parsed = page()
    (tmp_path / "report.html").write_text(text, encoding="utf-8")
    drawn = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--virtual-time-budget=20000",
            "--dump-dom",
            (tmp_path / "report.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    figures = json.loads(parsed.scripts[0])["figures"]
    plots = re.findall(
        r'data-figure="([^"]+)"[^>]*class="[^"]*js-plotly-plot|js-plotly-plot"[^>]*data-figure="([^"]+)"', drawn
    )
    assert {a or b for a, b in plots} == set(figures)


def test_the_rows_behind_the_study_are_counted(page):
    words = page()[1].words
    assert "950 kept (870 to learn from, 80 held out), 50 rejected, 7 of them because" in words
    assert "Rows with the higher score on the rejected answer, kept 3" in words
    assert "Pairs of answers given in both orders, kept 5" in words
    assert "Prompts under more than one prompt_id, each split as one 2" in words


def test_the_link_to_mlflow_is_of_the_newest_study_before_that_of_every_arm():
    study = fake_study(seeds=(42,), judged=False, iterations=10, prompts=4)

    def link():
        return compare(*study.inputs())[0]["mlflow_view"]

    cards = {name: files["run.json"] for name, files in study["files"].items() if "run.json" in files}
    assert link() == VIEW
    older, newer, newest = (VIEW.replace("=arms", f"=study-{i}") for i in (1, 2, 3))
    cards["ppo/seed=42"] |= {"mlflow_view": newer, "created": "2026-01-02T10:00:00+00:00"}
    cards["grpo/seed=42"] |= {"mlflow_view": older}
    study["files"]["reporting"] = {"run.json": {"mlflow_view": VIEW, "created": "2026-01-03T10:00:00+00:00"}}
    assert link() == newer
    study["files"]["evaluation"] = {"run.json": {"mlflow_view": newest, "created": "2026-01-03T10:00:00+00:00"}}
    assert link() == newest  # a study that reused every arm
