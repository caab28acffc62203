"""What policy optimisation starts from, and on how many bases, as variants of the report."""

import pytest
from fake_study import REPORTING, fake_study

from gemma_alignment.pipelines.reporting.nodes import compare, render_report


@pytest.mark.parametrize(("setting", "usual", "other"), [
    ("rl_base", "sft_merged", "sft_adapter"), ("sharing", "one_base", "separate_copies"),
])  # fmt: skip
def test_the_other_value_stands_beside_the_configured_one(setting, usual, other):
    families = ("ppo", "grpo", f"ppo@{setting}-{other}", f"grpo@{setting}-{other}")
    study = fake_study(families=families, judged=False)
    for name, files in study["files"].items():
        if "run.json" in files:
            files["run.json"]["parameters"]["modeling"] = {setting: other if setting in name else usual}
    comparison, _ = compare(*study.inputs())
    assert comparison["variants_left_out"] == []
    found = {block["method"]: block for block in comparison["ablations"]}
    assert set(found) == {"ppo", "grpo"}
    for method, block in found.items():
        assert (block["parameter"], block["configured"]) == (f"modeling.{setting}", usual)
        assert [(one["value"], one["family"]) for one in block["values"]] == [
            (usual, method), (other, f"{method}@{setting}-{other}"),
        ]  # fmt: skip
        assert len(block["values"][1]["metrics"]["eval/score_mean"]["difference"]["seeds"]) == 3
    text = render_report(comparison, *study.inputs()[:3], REPORTING)
    assert 'id="ablations"' in text and f"modeling.{setting}" in text
