"""From the files of a study to comparison and report, through the real catalog."""

import json
import sys
from pathlib import Path

import pytest
import yaml
from kedro.config import OmegaConfigLoader
from kedro.io import DataCatalog
from kedro.runner import SequentialRunner

from gemma_alignment.config import build
from gemma_alignment.parameters.reporting import ProtocolParameters, ReportingParameters
from gemma_alignment.pipelines.reporting import create_pipeline
from gemma_alignment.report.comparison import fingerprint
from gemma_alignment.settings import CONFIG_LOADER_ARGS

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tests" / "report"))
from fake_study import fake_study  # noqa: E402


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A study's files after the pipeline ran on them."""
    root = tmp_path_factory.mktemp("data")
    fake_study(iterations=20, prompts=20).write(root)
    loader = OmegaConfigLoader(
        str(ROOT / "conf"), env="base", runtime_params={"data_root": str(root)}, **CONFIG_LOADER_ARGS
    )
    parameters = {f"params:{name}": loader["parameters"][name] for name in ("protocol", "reporting")}
    parameters["params:reporting"] = {**parameters["params:reporting"], "bootstrap_draws": 200}
    wanted = create_pipeline().all_inputs() | create_pipeline().all_outputs()
    entries = {name: entry for name, entry in loader["catalog"].items() if name in wanted}
    assert set(entries) == wanted - set(parameters), "every dataset of the pipeline stands in the catalog"
    catalog = DataCatalog.from_config(entries)
    for name, value in parameters.items():
        catalog[name] = value
    SequentialRunner().run(create_pipeline(), catalog)
    return root / "08_reporting", catalog


def test_files_are_written(finished):
    folder, _ = finished
    comparison = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    assert comparison["schema_version"] == 1
    assert comparison["metrics"]["eval/score_mean"]["n"] == {"ppo": 3, "grpo": 3}
    assert comparison["win_rates"]["ppo_vs_grpo"]["crossed"]["seeds"] == 3
    assert comparison["reward_model"]["reward_model/accuracy"] == 0.84
    metrics = json.loads((folder / "study_metrics.json").read_text(encoding="utf-8"))
    assert set(metrics) == {"evaluation/cohens_d", *(f"evaluation/win_rate{e}" for e in ("", "_low", "_high"))}
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")
    names = [
        "comparison.json", "effect_sizes.plotly.json", "figures", "learning.plotly.json", "report.html",
        "study_metrics.json",
    ]  # fmt: skip
    assert sorted(p.name for p in folder.iterdir()) == names
    drawn = {p.name: p.read_text(encoding="utf-8") for p in (folder / "figures").iterdir()}
    assert {"forest.svg", "wins.svg", "curve-eval-score-mean.svg"} <= set(drawn)
    assert all("</svg>" in text for text in drawn.values())


def test_what_was_written_reads_back(finished):
    _, catalog = finished
    assert catalog.load("comparison")["verdict"]["metric"] == "win_rate"
    assert "</html>" in catalog.load("report")


def test_every_default_builds():
    values = yaml.safe_load((ROOT / "conf" / "base" / "parameters_reporting.yml").read_text(encoding="utf-8"))
    assert set(values) == {"protocol", "reporting"}
    protocol = build(ProtocolParameters, values["protocol"], "protocol")
    assert protocol.seeds == (42, 123, 777)
    assert protocol.alpha == 0.05
    assert build(ReportingParameters, values["reporting"], "reporting").title


def test_the_pipeline_can_wait_for_others():
    waiting = create_pipeline(["ppo.responses"])
    assert "ppo.responses" in waiting.inputs()
    assert {node.name for node in waiting.nodes} == {"compare", "render_report", "draw_figures"}
    assert all("reporting" in node.tags for node in waiting.nodes)


def test_the_written_protocol_is_the_one_that_runs():
    values = yaml.safe_load((ROOT / "conf" / "base" / "parameters_reporting.yml").read_text(encoding="utf-8"))
    printed = fingerprint(build(ProtocolParameters, values["protocol"], "protocol"))
    text = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
    assert printed in text, (
        f"docs/protocol.md must describe the protocol {printed}: read it again, then its fingerprint"
    )
