"""What a dry run of the real study looks at, without network, GPU or account."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from gemma_alignment.dotted import merged
from gemma_alignment.modeling.memory import GEMMA_2B
from gemma_alignment.parameters import SECTIONS, section_class
from gemma_alignment.study import estimates
from gemma_alignment.study.estimates import preflight
from gemma_alignment.study.plan import Plan, Variant
from gemma_alignment.study.project import read_parameters

ROOT = Path(__file__).parents[1]
PLAN = Plan(("ppo", "grpo"), (42, 123, 777), {}, "gemma2b")


@pytest.fixture(scope="module")
def parameters():
    from kedro.framework.startup import bootstrap_project

    bootstrap_project(ROOT)
    return read_parameters(ROOT, "gemma2b", {})


def looked_at(parameters, plan=PLAN, root=Path("/")):
    return {line.what: line for line in preflight(plan, parameters, root)}


def test_the_real_study_is_the_brief(parameters):
    modeling, preferences = parameters["modeling"], parameters["preferences"]
    assert (modeling["base_model"], modeling["quantization"], modeling["dtype"]) == (
        "google/gemma-2b-it", "nf4", "bfloat16",
    )  # fmt: skip
    assert len(modeling["revision"]) == len(preferences["revision"]) == 40
    assert preferences["repository"] == "HuggingFaceH4/ultrafeedback_binarized"
    assert (modeling["lora"]["rank"], modeling["gradient_checkpointing"]) == (16, True)
    assert (parameters["ppo"]["gae_lambda"], parameters["grpo"]["group_size"]) == (0.95, 6)
    assert parameters["kl_control"]["schedule"] == [0.05, 0.02, 0.01]
    assert parameters["protocol"]["seeds"] == parameters["study"]["seeds"] == [42, 123, 777]
    assert parameters["policy_optimization"]["eval_every"] == 50
    assert (parameters["judge"]["kind"], parameters["judge"]["model"]) == ("openai", "gpt-4o-mini-2024-07-18")
    assert parameters["runtime"]["device"] == "cuda"
    assert "rates" in SECTIONS and section_class("rates").__name__ == "RateParameters"


def test_everything_is_looked_at_and_what_is_missing_is_said(parameters, monkeypatch):
    for name in ("HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    lines = looked_at(parameters)
    assert list(lines) == [
        "HF_TOKEN", "OPENAI_API_KEY", "model", "disk", "memory ppo", "memory grpo", "GPU hours", "judge",
    ]  # fmt: skip
    assert "NOT SET" in lines["HF_TOKEN"].said and lines["HF_TOKEN"].is_missing
    assert lines["model"].is_missing and "never downloaded" in lines["model"].said
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setattr(estimates, "check_access", lambda name, revision: None)
    lines = looked_at(parameters)
    assert not any(line.is_missing for line in lines.values())
    assert not any("secret" in line.said for line in lines.values())
    assert "ASSUMED rates" in lines["GPU hours"].said


def test_a_full_disk_and_a_low_cap_are_missing_too(parameters, monkeypatch):
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    changed = merged(parameters, {"judge": {"remote": {"spend_cap_usd": 0.01}}})
    lines = looked_at(changed, root=ROOT / "data" / "none" / "yet")
    assert lines["disk"].is_missing and lines["disk"].said.endswith("NOT ENOUGH")
    assert lines["judge"].is_missing and lines["judge"].said.endswith("is 0.01: TOO LOW")


def seconds(parameters, plan=PLAN):
    return float(looked_at(parameters, plan)["GPU hours"].said.split()[1])


def test_the_hours_follow_from_counts_and_rates(parameters):
    """By hand, for GRPO alone with everything else free: 48 × 512 tokens seven times, and 3 batches of 128 steps."""
    quick = merged(parameters, {"preferences": {"sample_size": 0}, "policy_optimization": {"num_iterations": 30_000}})
    grpo = replace(PLAN, methods=("grpo",), seeds=(1,))
    expected = 30_000 * (7 * 48 * 512 / 6000 + 3 * 128 / 20) / 3600
    assert seconds(quick, grpo) == pytest.approx(expected, abs=0.5)
    assert seconds(quick, replace(grpo, seeds=(1, 2))) == pytest.approx(2 * expected, abs=1)
    variants = (Variant("grpo", "modeling.rl_base", "sft_adapter"),)
    assert seconds(quick, replace(grpo, variants=variants)) == pytest.approx(2 * expected, abs=1)
    twice = merged(quick, {"rates": {"forward_tokens_per_second": 12_000, "decode_steps_per_second": 40}})
    assert seconds(twice, grpo) == pytest.approx(expected / 2, abs=0.5)
    measured = merged(quick, {"rates": {"measured_on": "a GPU"}})
    assert "rates measured on a GPU" in looked_at(measured)["GPU hours"].said
    ppo = seconds(quick, replace(grpo, methods=("ppo",)))
    assert ppo == pytest.approx(30_000 * (11 * 48 * 512 / 6000 + 3 * 128 / 20) / 3600, abs=0.5)


def test_the_embedded_study_needs_nothing(parameters):
    assert preflight(PLAN, read_parameters(ROOT, "base", {}), Path("/")) == []


def test_a_model_of_unknown_shape_is_not_guessed(parameters):
    other = merged(parameters, {"modeling": {"base_model": "google/gemma-7b-it"}})
    assert looked_at(other)["size"].said.startswith("not estimated")


def test_the_shape_of_gemma_2b():
    assert GEMMA_2B.linear_weights == 1_981_808_640
    assert GEMMA_2B.table_weights == 524_288_000
    assert GEMMA_2B.lora_weights(16) == 19_611_648


@pytest.mark.cli
def test_the_dry_run_of_the_real_study_prints_it_and_fails_for_what_is_missing(project):
    keys = {"HF_TOKEN": "", "OPENAI_API_KEY": "sk-secret"}
    code, said = project.command("kedro", "study", "--env=gemma2b", "--dry-run", **keys)
    assert code == 1, said
    lines = {line.split("  ")[0]: line for line in said.splitlines() if "  " in line}
    assert "ppo-seed42" in lines and "kedro run --pipelines=ppo --env=gemma2b" in lines["ppo-seed42"]
    assert "NOT SET" in lines["HF_TOKEN"]
    assert lines["OPENAI_API_KEY"].split() == ["OPENAI_API_KEY", "set"]
    for name in ("disk", "memory ppo", "memory grpo", "GPU hours", "judge"):
        assert name in lines
    assert "Traceback" not in said and "sk-secret" not in said
