"""Ablations, sensitivity and stability: what is said of variants, and that the comparison does not hear of them."""

import json
from itertools import pairwise

import numpy as np
import plotly.graph_objects as go
import pytest
from fake_study import REPORTING, fake_study

from gemma_alignment.pipelines.reporting.nodes import compare, render_report
from gemma_alignment.statistics.intervals import paired_difference
from gemma_alignment.statistics.stability import pooled_sd, spread
from gemma_alignment.statistics.tests import paired_student

SEEDS = ("42", "123", "777")
SWITCHED = ("grpo@kl_placement-none", "grpo@kl_placement-sequence_score", "ppo@kl_placement-none")
VARIED = ("grpo@group_size-2", "grpo@group_size-12", "ppo@group_size-3")
FAMILIES = ("ppo", "grpo", *SWITCHED, *VARIED)
SECTIONS = {"ablations", "sensitivity", "stability", "variants_left_out", "runs"}


def final(study, family, key="eval/score_mean"):
    return [study["files"][f"{family}/seed={seed}"]["history.jsonl"][-1][key] for seed in SEEDS]


def factor(comparison, section, parameter):
    (found,) = [one for one in comparison[section] if one["parameter"] == parameter]
    return found


def value(block, family):
    (found,) = [one for one in block["values"] if one["family"] == family]
    return found


def script(text):
    start = text.index('id="data">') + len('id="data">')
    return json.loads(text[start : text.index("</script>", start)])


def page_of(study):
    comparison, _ = compare(*study.inputs())
    return comparison, render_report(comparison, *study.inputs()[:3], REPORTING)


def test_the_comparison_does_not_hear_of_variants(made):
    _, plain = made(judged=False)
    _, c = made(families=FAMILIES, judged=False)
    assert {key: c[key] for key in c.keys() - SECTIONS} == {key: plain[key] for key in plain.keys() - SECTIONS}
    ours = [row for row in c["runs"] if row["variant"] is None]
    assert ours == plain["runs"]
    judged = fake_study()
    with_variants = fake_study(families=FAMILIES, judged=False)
    with_variants["judgements"] = judged["judgements"]
    with_variants["judge_card"] = judged["judge_card"]
    plain, metrics = compare(*judged.inputs())
    c, same = compare(*with_variants.inputs())
    assert metrics == same
    assert {key: c[key] for key in c.keys() - SECTIONS} == {key: plain[key] for key in plain.keys() - SECTIONS}


def test_without_variants_there_is_stability_and_nothing_else(made):
    study, c = made(judged=False)
    assert (c["ablations"], c["sensitivity"], c["variants_left_out"]) == ([], [], [])
    assert [block["family"] for block in c["stability"]] == ["ppo", "grpo"]
    text = render_report(c, *study.inputs()[:3], REPORTING)
    assert 'id="stability"' in text
    assert 'id="ablations"' not in text and 'id="sensitivity"' not in text
    assert not [name for name in script(text)["figures"] if name.startswith("sweep")]


def test_words_are_ablations_and_numbers_are_sensitivity(made):
    _, c = made(families=FAMILIES, judged=False)
    assert [(f["method"], f["parameter"], f["configured"]) for f in c["ablations"]] == [
        ("grpo", "grpo.kl_placement", "loss"),
        ("ppo", "ppo.kl_placement", "loss"),
    ]
    assert [(f["method"], f["parameter"], f["configured"]) for f in c["sensitivity"]] == [
        ("grpo", "grpo.group_size", 6),
        ("ppo", "ppo.group_size", 6),
    ]
    switched = factor(c, "ablations", "grpo.kl_placement")
    assert [one["value"] for one in switched["values"]] == ["loss", "none", "sequence_score"]
    varied = factor(c, "sensitivity", "grpo.group_size")
    assert [one["value"] for one in varied["values"]] == [2, 6, 12], "in the order of the scale"
    assert [one["family"] for one in varied["values"]] == ["grpo@group_size-2", "grpo", "grpo@group_size-12"]


def test_a_variant_is_compared_with_the_configured_runs_of_its_own_seeds(made):
    study, c = made(families=FAMILIES, judged=False)
    block = value(factor(c, "ablations", "grpo.kl_placement"), "grpo@kl_placement-none")
    for name in ("eval/score_mean", "eval/gold_mean", "eval/kl_to_reference", "eval/response_length"):
        mine, theirs = final(study, "grpo@kl_placement-none", name), final(study, "grpo", name)
        one = block["metrics"][name]
        assert list(one["per_seed"]) == list(SEEDS)
        assert list(one["per_seed"].values()) == mine
        assert one["mean"] == pytest.approx(np.mean(mine))
        expected = paired_difference(mine, theirs)
        assert one["difference"]["estimate"] == pytest.approx(np.mean(mine) - np.mean(theirs))
        assert (one["difference"]["low"], one["difference"]["high"]) == (expected.low, expected.high)
        assert (one["difference"]["df"], one["difference"]["seeds"]) == (2.0, [42, 123, 777])
        assert one["p"] == paired_student(mine, theirs).p
    baseline = value(factor(c, "ablations", "grpo.kl_placement"), "grpo")
    assert "difference" not in baseline["metrics"]["eval/score_mean"]


def test_holm_is_over_the_variants_of_a_section_metric_by_metric(made):
    _, c = made(families=FAMILIES, judged=False)
    for section, expected in (("ablations", 3), ("sensitivity", 3)):
        for name in ("eval/score_mean", "eval/kl_to_reference"):
            found = [
                one["metrics"][name]
                for block in c[section]
                for one in block["values"]
                if "holm_p" in one["metrics"][name]
            ]
            assert len(found) == expected
            ordered = sorted(found, key=lambda one: one["p"])
            assert ordered[0]["holm_p"] == pytest.approx(min(1.0, 3 * ordered[0]["p"]))
            assert all(a["holm_p"] <= b["holm_p"] for a, b in pairwise(ordered))


def test_a_range_of_means_stands_beside_the_seed_sd_over_common_seeds():
    study = fake_study(families=FAMILIES, judged=False)
    del study["files"]["grpo@group_size-12/seed=777"]
    c, _ = compare(*study.inputs())
    block = factor(c, "sensitivity", "grpo.group_size")["over_values"]["eval/score_mean"]
    groups = [final(fake_study(families=FAMILIES, judged=False), f)[:2] for f in (*VARIED[:2], "grpo")]
    means = [np.mean(group) for group in groups]
    assert block["seeds"] == [42, 123]
    assert block["range_of_means"] == pytest.approx(max(means) - min(means))
    assert block["sd_within"] == pytest.approx(pooled_sd(groups))


def test_one_seed_has_a_difference_and_says_that_it_has_no_interval():
    study = fake_study(seeds=(42,), families=("ppo", "grpo", "grpo@kl_placement-none"), judged=False)
    c, text = page_of(study)
    difference = value(c["ablations"][0], "grpo@kl_placement-none")["metrics"]["eval/score_mean"]["difference"]
    assert difference["estimate"] is not None
    assert (difference["low"], difference["high"]) == (None, None)
    assert "n = 1" in difference["reason"]
    section = text[text.index('id="ablations"') : text.index('id="cost"')]
    assert "interval not estimable: n = 1: at least 2 values a group are needed" in section
    assert "not estimable</small>" in section
    assert "better" not in section


def test_a_seed_without_a_baseline_is_shown_and_not_paired():
    study = fake_study(families=("ppo", "grpo", "grpo@kl_placement-none"), judged=False)
    del study["files"]["grpo/seed=123"]
    c, _ = compare(*study.inputs())
    one = value(c["ablations"][0], "grpo@kl_placement-none")["metrics"]["eval/score_mean"]
    assert list(one["per_seed"]) == list(SEEDS)
    assert one["difference"]["seeds"] == [42, 777]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: f["run.json"]["parameters"]["grpo"].update(update_epochs=4), "grpo.kl_placement, grpo.update_epoch"),
        (lambda f: f["run.json"]["parameters"]["grpo"].update(kl_placement="loss"), "no recorded parameter"),
        (lambda f: f["run.json"].pop("parameters"), "not in one"),
        (lambda f: f["run.json"]["fingerprints"].update(sft="0" * 64), "another SFT model than grpo/seed=123"),
        (lambda f: f["run.json"]["fingerprints"].update(reward_model="0" * 64), "another reward model"),
        (lambda f: f["run.json"].update(status="failed"), "says failed"),
        (lambda f: f["history.jsonl"].pop(), "ends at iteration 79 of 80"),
    ],
)
def test_a_run_that_is_no_clean_variant_is_left_out_with_the_reason(change, reason):
    study = fake_study(families=("ppo", "grpo", "grpo@kl_placement-none"), judged=False)
    change(study["files"]["grpo@kl_placement-none/seed=123"])
    c, text = page_of(study)
    (row,) = c["variants_left_out"]
    assert row["what"] == "grpo@kl_placement-none/seed=123"
    assert reason in row["reason"]
    one = value(c["ablations"][0], "grpo@kl_placement-none")["metrics"]["eval/score_mean"]
    assert list(one["per_seed"]) == ["42", "777"]
    assert "Why it has no section" in text


def test_a_variant_without_a_baseline_is_left_out():
    study = fake_study(families=("ppo", "grpo@kl_placement-none"), judged=False)
    c, _ = compare(*study.inputs())
    assert c["ablations"] == []
    assert {row["reason"] for row in c["variants_left_out"]} == {"no finished run of grpo to compare it with"}


def test_a_value_that_is_a_list_can_be_shown():
    study = fake_study(families=("ppo", "grpo", "grpo@slow"), judged=False)
    for name, files in study["files"].items():
        if "run.json" in files:
            schedule = [0.1] if "@slow" in name else [0.05, 0.02, 0.01]
            files["run.json"]["parameters"]["kl_control"] = {"schedule": schedule}
    c, text = page_of(study)
    (found,) = c["ablations"]
    assert (found["parameter"], found["configured"]) == ("kl_control.schedule", "[0.05, 0.02, 0.01]")
    assert "[0.1]" in text


def test_a_number_that_was_null_is_switched_and_not_varied():
    study = fake_study(families=("ppo", "grpo", "grpo@clip_epsilon_high-1"), judged=False)
    c, text = page_of(study)
    (found,) = c["ablations"]
    assert [one["value"] for one in found["values"]] == [None, 1]
    assert ">null<" in text
    assert c["sensitivity"] == []


def test_without_gold_a_variant_has_no_gold(made):
    study, c = made(families=FAMILIES, judged=False, gold=False)
    assert "eval/gold_mean" not in c["ablations"][0]["over_values"]
    text = render_report(c, *study.inputs()[:3], REPORTING)
    assert "gold" not in " ".join(name for name in script(text)["figures"] if name.startswith("sweep"))


def test_stability_is_the_spread_of_the_final_score_and_the_worst_drawdown(made):
    study, c = made(families=FAMILIES, judged=False)
    assert {block["family"] for block in c["stability"]} == set(FAMILIES)
    (block,) = [one for one in c["stability"] if one["family"] == "grpo@group_size-2"]
    scores = final(study, "grpo@group_size-2")
    expected = spread(scores)
    assert list(block["per_seed"].values()) == scores
    assert (block["sd"], block["sd_low"], block["sd_high"]) == (expected.sd, expected.sd_low, expected.sd_high)
    assert (block["least"], block["largest"]) == (min(scores), max(scores))
    for key in ("eval/score_mean", "reward/score_mean"):
        worst = []
        for seed in SEEDS:
            rows = study["files"][f"grpo@group_size-2/seed={seed}"]["history.jsonl"]
            series = [row[key] for row in rows if key in row]
            worst.append(max(max(series[: t + 1]) - series[t] for t in range(len(series))))
        assert list(block["drawdown"][key]["per_seed"].values()) == pytest.approx(worst)
        assert block["drawdown"][key]["worst"] == pytest.approx(max(worst))


def test_a_collapse_that_recovers_is_a_drawdown_and_no_change_of_the_final_score():
    study = fake_study(families=("ppo", "grpo"), judged=False)
    rows = study["files"]["ppo/seed=42"]["history.jsonl"]
    evaluated = [row for row in rows if "eval/score_mean" in row]
    evaluated[5]["eval/score_mean"] = evaluated[4]["eval/score_mean"] - 3.0
    c, _ = compare(*study.inputs())
    (block,) = [one for one in c["stability"] if one["family"] == "ppo"]
    assert block["drawdown"]["eval/score_mean"]["per_seed"]["42"] == pytest.approx(3.0)
    assert block["drawdown"]["eval/score_mean"]["per_seed"]["123"] < 1.0
    assert block["per_seed"]["42"] == evaluated[-1]["eval/score_mean"]


def test_the_page_has_the_sections_with_every_seed(made):
    study, c = made(families=FAMILIES, judged=False)
    text = render_report(c, *study.inputs()[:3], REPORTING)
    for section in ("stability", "ablations", "sensitivity"):
        assert f'id="{section}"' in text
    for family in SWITCHED:
        scores = value(factor(c, "ablations", f"{family[:4].rstrip('@')}.kl_placement"), family)["metrics"]
        shown = " · ".join(f"{v:.3f}" for v in scores["eval/score_mean"]["per_seed"].values())
        assert shown in text
    assert "significant" not in text[: text.index('id="data"')].lower()
    stability = text[text.index('id="stability"') : text.index('id="ablations"')]
    assert stability.count("n = 3, [") == len(FAMILIES), "an sd without its n says nothing"
    sensitivity = text[text.index('id="sensitivity"') : text.index('id="cost"')]
    assert sensitivity.count("3 seeds, sd at one value ") == 2 * 4, "two methods, four metrics"
    assert 'id="others"' not in text, "what has a section is not listed again"


def test_the_words_of_a_variant_are_those_of_its_interval_and_holm():
    study = fake_study(families=("ppo", "grpo", "grpo@kl_placement-none"), judged=False)
    for i, seed in enumerate(SEEDS):
        base = study["files"][f"grpo/seed={seed}"]["history.jsonl"][-1]
        row = study["files"][f"grpo@kl_placement-none/seed={seed}"]["history.jsonl"][-1]
        row["eval/score_mean"] = base["eval/score_mean"] + 1.0 + 0.001 * i
        row["eval/kl_to_reference"] = base["eval/kl_to_reference"] + (1.0, -1.0, 0.0)[i]
    _, text = page_of(study)
    section = text[text.index('id="ablations"') : text.index('id="cost"')]
    assert "GRPO@kl_placement-none better" in section
    assert "not resolved at this n" in section


def test_a_sweep_is_drawn_with_all_its_seeds(made):
    study, c = made(families=FAMILIES, judged=False)
    drawn = script(render_report(c, *study.inputs()[:3], REPORTING))["figures"]
    spec = drawn["sweep-group-size-eval-score-mean"]
    assert {trace.type for trace in go.Figure(spec).data} == {"scatter"}
    points, line = [trace for trace in spec["data"] if trace["legendgroup"] == "grpo"]
    assert points["x"] == [2] * 3 + [6] * 3 + [12] * 3
    expected = [y for family in ("grpo@group_size-2", "grpo", "grpo@group_size-12") for y in final(study, family)]
    assert points["y"] == pytest.approx(expected, rel=1e-4)
    assert points["marker"]["symbol"] == ["circle"] * 3 + ["diamond"] * 3 + ["circle"] * 3
    assert (line["x"], line["name"]) == ([2, 6, 12], "GRPO")
    assert spec["layout"]["xaxis"]["type"] == "linear"
    assert "sweep-group-size-eval-gold-mean" in drawn


def test_values_of_several_magnitudes_have_a_logarithmic_axis():
    study = fake_study(families=("ppo", "grpo", "grpo@group_size-120"), judged=False)
    spec = script(page_of(study)[1])["figures"]["sweep-group-size-eval-score-mean"]
    assert spec["layout"]["xaxis"]["type"] == "log"


def test_curves_are_not_crowded_by_variants_with_a_section(made):
    study, c = made(families=(*FAMILIES, "grpo@mine", "rloo"), judged=False)
    traces = script(render_report(c, *study.inputs()[:3], REPORTING))["figures"]["curve-eval-score-mean"]["data"]
    assert {trace["legendgroup"] for trace in traces} == {"ppo", "grpo", "grpo@mine", "rloo"}


def families(block):
    return [one["family"] for one in block["values"]]


@pytest.mark.parametrize(("kind", "section", "other"), [
    ("ablation", "ablations", "sensitivity"), ("sweep", "sensitivity", "ablations"),
])  # fmt: skip
@pytest.mark.parametrize(("family", "parameter"), [
    ("grpo@group_size-2", "grpo.group_size"), ("grpo@kl_placement-none", "grpo.kl_placement"),
])  # fmt: skip
def test_a_variant_stands_where_it_was_asked_for_whatever_its_values_are(family, parameter, kind, section, other):
    study = fake_study(families=("ppo", "grpo", family), judged=False)
    for seed in SEEDS:
        study["files"][f"{family}/seed={seed}"]["run.json"]["variant_kind"] = kind
    c, text = page_of(study)
    assert (c[other], [one["parameter"] for one in c[section]]) == ([], [parameter])
    assert f'id="{section}"' in text and f'id="{other}"' not in text
    drawn = [name for name in script(text)["figures"] if name.startswith("sweep")]
    assert bool(drawn) == (kind == "sweep" and parameter == "grpo.group_size"), "words have no axis"


def test_what_was_asked_for_both_ways_stands_in_both_sections():
    small, large = "grpo@group_size-2", "grpo@group_size-12"
    study = fake_study(families=("ppo", "grpo", small, large), judged=False)
    for seed in SEEDS:
        study["files"][f"{small}/seed={seed}"]["run.json"]["variant_kind"] = "ablation+sweep"
        study["files"][f"{large}/seed={seed}"]["run.json"]["variant_kind"] = "sweep"
    c, _ = compare(*study.inputs())
    assert families(c["ablations"][0]) == [small, "grpo"]
    assert families(c["sensitivity"][0]) == [small, "grpo", large]
    only = [one["metrics"]["eval/score_mean"] for one in c["ablations"][0]["values"] if one["family"] == small]
    assert only[0]["holm_p"] == only[0]["p"], "one variant in its section"
