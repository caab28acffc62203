"""The fingerprint of the configuration, and whether what should be equal is."""

from fake_study import REPORTING, fake_study

from gemma_alignment.pipelines.reporting.nodes import compare, render_report
from gemma_alignment.report.provenance import configuration
from gemma_alignment.report.runs import Run, RunKey


def run(name, seed, print_, parameters=None):
    card = {"fingerprints": {"configuration": print_}, "parameters": parameters or {}}
    return Run(RunKey(name, seed), card=card if print_ else {})


def test_the_configurations_fingerprint_changes_with_any_run_and_with_the_judge():
    runs = [run("ppo", 1, "a"), run("grpo", 1, "b")]
    judge = {"kind": "rubric", "settings": {"noise": 0.5}}
    first = configuration(runs, judge)
    assert len(first["fingerprint"]) == 16
    assert first["runs"] == {"ppo/seed=1": "a", "grpo/seed=1": "b"}
    assert configuration(runs[::-1], judge)["fingerprint"] == first["fingerprint"]
    assert configuration([runs[0], run("grpo", 1, "c")], judge)["fingerprint"] != first["fingerprint"]
    assert configuration(runs, {**judge, "settings": {"noise": 0.4}})["fingerprint"] != first["fingerprint"]
    unknown = configuration([*runs, run("ppo", 2, None)], judge)
    assert (unknown["fingerprint"], unknown["reason"]) == (None, "not recorded by ppo/seed=2")
    assert configuration([], judge)["fingerprint"] is None


def test_settings_that_should_be_equal_are_looked_up():
    study = fake_study(judged=False)
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
