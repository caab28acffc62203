"""The fingerprint of the configuration, and whether what should be equal is."""

from functools import cache
from pathlib import Path

import pytest
from fake_study import REPORTING, fake_study
from kedro.config import OmegaConfigLoader

from gemma_alignment.dotted import dotted, merged, nested
from gemma_alignment.hooks.values import read_by
from gemma_alignment.pipeline_registry import register_pipelines
from gemma_alignment.pipelines.reporting.nodes import compare, render_report
from gemma_alignment.report.provenance import configuration
from gemma_alignment.report.runs import Run, RunKey
from gemma_alignment.settings import CONFIG_LOADER_ARGS

CONF = Path(__file__).parents[2] / "conf"
JUDGED = {"judged": True, "kind": "rubric", "models": ["rubric"], "prompt_versions": ["rubric-1"]}
LANGUAGE_MODEL = {"judged": True, "kind": "openai", "models": ["m"], "prompt_versions": ["pairwise-1"]}
DRAWS = {"bootstrap_draws": 100, "bootstrap_seed": 1}
STAGES = ("data_processing", "sft", "reward_model", "evaluation")
CHECKPOINTS = {
    f"{section}.{name}" for section in ("pretraining", "sft", "reward_model", "policy_optimization")
    for name in ("checkpoint_every", "checkpoints_kept")
}  # fmt: skip
OPERATING = CHECKPOINTS | {
    "preferences.path", "preferences.min_rows", "policy_optimization.samples_per_evaluation", "judge.mode",
    "judge.labelled_path", "judge.reference_path", "judge.recorded_path", "judge.remote.batch_poll_s",
    "judge.remote.batch_size", "judge.remote.timeout_s", "judge.remote.concurrency", "judge.remote.requests_per_minute",
    "judge.remote.max_attempts", "judge.remote.backoff_s", "judge.remote.max_backoff_s", "judge.remote.spend_cap_usd",
    "judge.remote.prices",
}  # fmt: skip
"""Written down a second time, so that a setting cannot slip in among them unseen."""
WORLD = {"world.noise", "world.max_skill", "world.corrupted_share", "world.unseen_tasks"}
OF_THE_HUB = {"preferences.repository", "preferences.revision", "preferences.split"}
OF_A_LANGUAGE_MODEL = {
    "judge.model", "judge.base_url", "judge.attempts", "judge.labelled_pairs", "judge.remote.temperature",
    "judge.remote.max_output_tokens",
}  # fmt: skip
OF_THE_RUBRIC = {"judge.rubric.noise", "judge.rubric.position_bias", "judge.rubric.tie_margin"}


@pytest.fixture(scope="module")
def defaults():
    loader = OmegaConfigLoader(str(CONF), env="base", **CONFIG_LOADER_ARGS)
    return dict(loader["parameters"])


@cache
def pipelines():
    return register_pipelines()


def records(parameters):
    """The runs of a study under these parameters, each with what its nodes read of them."""

    def record(stage, seed=None):
        nodes = [node for node in pipelines()[stage].nodes if stage in node.tags]
        read = read_by(nodes, {**parameters, "seed": seed})
        return Run(RunKey(stage, seed), card={"status": "finished", "parameters": read, "fingerprints": {}})

    found = [*(record(stage) for stage in STAGES), *(record(arm, seed) for arm in ("ppo", "grpo") for seed in (1, 2))]
    return {one.key: one for one in found}


def fingerprint(runs, judge=JUDGED, draws=DRAWS):
    used = [run for key, run in runs.items() if key.seed is not None]
    return configuration(runs, used, judge, draws)["fingerprint"]


def other(value):
    if isinstance(value, bool) or value is None:
        return not value
    return value + 1 if isinstance(value, int | float) else [*value, 1] if isinstance(value, list) else f"{value}x"


@pytest.mark.parametrize(
    ("changes", "judge", "unread"),
    [
        ({}, JUDGED, OF_THE_HUB | OF_A_LANGUAGE_MODEL | {"modeling.revision", "judge.kind"}),
        (
            {"preferences.source": "jsonl"}, LANGUAGE_MODEL,
            OF_THE_HUB | WORLD | OF_THE_RUBRIC | {"preferences.sample_size", "modeling.revision", "judge.kind"},
        ),
        ({"preferences.source": "huggingface", "modeling.base_model": "some/model"}, JUDGED,
         WORLD | OF_A_LANGUAGE_MODEL | {"judge.kind", "tokenizer.", "tiny_model.", "pretraining."}),
    ],
)  # fmt: skip
def test_the_fingerprint_changes_with_what_can_change_a_number_and_with_nothing_else(defaults, changes, judge, unread):
    """Every setting that a stage reads, one after the other; ``judge.kind`` counts as what it came to."""
    base = merged(defaults, nested(changes))
    before = records(base)
    first = fingerprint(before, judge)
    assert len(first) == 16
    read = {name: value for run in before.values() for name, value in dotted(run.card["parameters"]).items()}
    assert len(read) > 100
    silent = set()
    for name, value in read.items():
        if name in changes:
            continue
        if fingerprint(records(merged(base, nested({name: other(value)}))), judge) == first:
            silent.add(name)
    sections = tuple(name for name in unread if name.endswith("."))
    expected = {n for n in read if n in OPERATING | unread or n.startswith(sections)} - {"seed"}
    assert silent - {"seed"} == expected


def test_the_fingerprint_changes_with_judge_files_draws_and_runs(defaults):
    runs = records(defaults)
    first = fingerprint(runs)
    for name, value in (("kind", "openai"), ("prompt_versions", ["rubric-2"]), ("models", ["another"])):
        assert fingerprint(runs, {**JUDGED, name: value}) != first
    assert fingerprint(runs, JUDGED, {**DRAWS, "bootstrap_draws": 200}) != first
    assert fingerprint({key: run for key, run in runs.items() if key.seed != 2}) != first
    for stage, label in (("data_processing", "source"), ("evaluation", "recorded"), ("evaluation", "labelled")):
        changed = records(defaults)
        changed[RunKey(stage, None)].card["fingerprints"][label] = "digest"
        assert fingerprint(changed) != first
    assert fingerprint(dict(reversed(runs.items()))) == first


def test_what_was_not_recorded_is_not_fingerprinted(defaults):
    runs = records(defaults)
    used = [run for key, run in runs.items() if key.seed is not None]
    without = {key: run for key, run in runs.items() if key.family not in ("sft", "evaluation")}
    found = configuration(without, used, JUDGED, DRAWS)
    assert (found["fingerprint"], found["reason"]) == (None, "not recorded by evaluation, sft")
    not_judged = configuration(without, used, {"judged": False, "kind": "none"}, DRAWS)
    assert not_judged["reason"] == "not recorded by sft"
    runs[RunKey("evaluation", None)].card["status"] = "failed"
    assert configuration(runs, used, JUDGED, DRAWS)["reason"] == "not recorded by evaluation"
    assert configuration(runs, [], JUDGED, DRAWS)["reason"] == "no run is compared"


def test_settings_that_should_be_equal_are_looked_up():
    study = fake_study(judged=False)
    for stage in ("data_processing", "sft", "reward_model"):
        card = {"status": "finished", "parameters": {"prepare_seed": 42}}
        study["files"].setdefault(stage, {})["run.json"] = card
    for folder, files in study["files"].items():
        if "/" in folder:
            method, _, seed = folder.partition("/seed=")
            files["run.json"]["fingerprints"]["configuration"] = folder
            files["run.json"]["parameters"] |= {method: {"group_size": 6}, "seed": int(seed), "rollout": {"t": 1.0}}

    def checks():
        comparison, _ = compare(*study.inputs())
        return {row["check"]: row["held"] for row in comparison["equal"]}, comparison

    shared, own = "same settings besides method and seed", "same settings of grpo in every seed"
    held, comparison = checks()
    assert held[shared] is held[own] is True
    assert comparison["configuration"]["fingerprint"]
    text = render_report(comparison, *study.inputs()[:3], REPORTING)
    assert comparison["configuration"]["fingerprint"] in text
    assert "<code>ppo/seed=42</code>" in text  # the run's own fingerprint in the table of runs
    study["files"]["grpo/seed=42"]["run.json"]["parameters"]["grpo"] = {"group_size": 4}
    assert checks()[0][own] is False
    assert checks()[0][shared] is True
    study["files"]["ppo/seed=42"]["run.json"]["parameters"]["rollout"] = {"t": 0.5}
    assert checks()[0][shared] is False


def test_what_only_some_runs_recorded_is_not_held_but_unknown():
    study = fake_study(judged=False)
    del study["files"]["grpo/seed=42"]["run.json"]["fingerprints"]["data"]
    comparison, _ = compare(*study.inputs())
    (found,) = [row for row in comparison["equal"] if row["check"] == "same data (fingerprint)"]
    assert (found["held"], found["detail"]) == (None, "not recorded by all: 5 of 6")
    assert any(one.startswith("Not known to be equal: same data (fingerprint)") for one in comparison["cautions"])
    study["files"]["grpo/seed=123"]["run.json"]["fingerprints"]["data"] = "another"
    comparison, _ = compare(*study.inputs())
    (found,) = [row for row in comparison["equal"] if row["check"] == "same data (fingerprint)"]
    assert found["held"] is False
