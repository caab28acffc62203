"""The comparison of a finished study, and of studies that lack something."""

import json
import math

import numpy as np
import pytest
from fake_study import PROTOCOL, REPORTING, fake_study

from gemma_alignment.config import ConfigError, build
from gemma_alignment.judging.pairing import resolve, verdicts_by_pair
from gemma_alignment.parameters.reporting import ProtocolParameters, ReportingParameters
from gemma_alignment.pipelines.reporting.nodes import compare
from gemma_alignment.report.conclusions import verdict_block, widest
from gemma_alignment.report.runs import RunKey, parse_key
from gemma_alignment.report.win_rates import results_between
from gemma_alignment.statistics.effect_size import cohens_d
from gemma_alignment.statistics.intervals import welch_difference
from gemma_alignment.statistics.win_rate import crossed


def everything(value):
    yield value
    if isinstance(value, dict):
        for v in value.values():
            yield from everything(v)
    elif isinstance(value, list):
        for v in value:
            yield from everything(v)


@pytest.mark.parametrize(
    ("partition", "key"),
    [
        ("ppo/seed=42/history.jsonl", RunKey("ppo", 42)),
        ("ppo/seed=42/", RunKey("ppo", 42)),
        ("ppo/seed=42", RunKey("ppo", 42)),
        ("grpo@k4/seed=7/responses", RunKey("grpo@k4", 7)),
        ("sft/", RunKey("sft", None)),
        ("reward_model/history.jsonl", RunKey("reward_model", None)),
        ("", None),
        ("../x", None),
    ],
)
def test_partition_names(partition, key):
    assert parse_key(partition) == key


def test_a_run_knows_its_method_and_variant():
    key = RunKey("grpo@k4", 7)
    assert (key.method, key.variant, key.name) == ("grpo", "k4", "grpo@k4/seed=7")


def test_contract_keys_and_no_number_that_is_none(made):
    _, c = made()
    assert {"schema_version", "protocol", "runs", "metrics", "judge", "not_estimable"} <= set(c)
    assert all(math.isfinite(v) for v in everything(c) if isinstance(v, float))
    robust = "interquartile mean and probability of improvement"
    # GRPO needs less memory than PPO at every iteration: no memory is spent by both
    unmatched = [f"{name} at equal memory/peak_mb" for name in ("eval/score_mean", "eval/gold_mean")]
    assert [row["what"] for row in c["not_estimable"]] == [*unmatched, robust]
    assert c["not_estimable"][0]["reason"].startswith("beyond it from the first evaluation on: ")
    assert [m for m, b in c["metrics"].items() if b["role"] == "primary"] == ["win_rate"]


def test_a_metric_is_what_the_statistics_say_of_its_values(made):
    study, c = made()
    block = c["metrics"]["eval/score_mean"]
    arms = []
    for method in ("ppo", "grpo"):
        rows = [study["files"][f"{method}/seed={s}"]["history.jsonl"][-1] for s in (42, 123, 777)]
        arms.append([row["eval/score_mean"] for row in rows])
        assert list(block["per_seed"][method].values()) == arms[-1]
        assert list(block["per_seed"][method]) == ["42", "123", "777"]
        assert block["mean"][method] == pytest.approx(np.mean(arms[-1]))
    d, difference = cohens_d(*arms), welch_difference(*arms)
    assert (block["cohens_d"]["d"], block["cohens_d"]["g_high"]) == (d.d, d.g_high)
    assert (block["difference"]["low"], block["difference"]["df"]) == (difference.low, difference.df)
    assert (block["permutation"]["floor"], block["sign_flip"]["floor"]) == (0.1, 0.25)
    assert block["power"]["least_d"] == pytest.approx(3.0708922, abs=1e-6)
    assert (block["n"], block["unit_of_resampling"]) == ({"ppo": 3, "grpo": 3}, "seed")


def test_holm_is_over_the_secondary_family(made):
    _, c = made()
    assert [row["metric"] for row in c["holm"]] == PROTOCOL["secondary_metrics"]
    for row in c["holm"]:
        assert row["holm_p"] >= row["p"] == c["metrics"][row["metric"]]["welch"]["p"]
    assert "holm_p" not in c["metrics"]["responses/score_mean"]


def test_win_rates_are_those_of_the_judgements(made):
    study, c = made()
    verdicts = {}
    for row in study["judgements"]:
        if (row["system_a"], row["system_b"]) == ("ppo/seed=42", "grpo/seed=42"):
            verdicts.setdefault(row["prompt_id"], {})[row["order"]] = row["verdict"]
    wins = sum(v == {"ab": "first", "ba": "second"} for v in verdicts.values())
    losses = sum(v == {"ab": "second", "ba": "first"} for v in verdicts.values())
    missing = sum("unparsed" in v.values() for v in verdicts.values())
    one = c["win_rates"]["ppo_vs_grpo"]["per_seed"]["42"]
    assert (one["wins"], one["losses"], one["missing"]) == (wins, losses, missing)
    assert one["wins"] + one["ties"] + one["losses"] + one["missing"] == 60


def test_intervals_are_labelled_by_what_they_generalise_to(made):
    _, c = made()
    block = c["win_rates"]["ppo_vs_grpo"]["crossed"]
    assert block["over_prompts"]["generalises_to"] == "new prompts, these trained models"
    assert block["over_seeds"]["generalises_to"] == "new seeds, these prompts"
    assert block["seeds"] == 3
    assert block["over_seeds"]["df"] == 2


def test_the_verdict_takes_the_wider_bound_of_each_kind(made):
    _, c = made()
    block = c["win_rates"]["ppo_vs_grpo"]["crossed"]
    low, high = widest(block)
    kinds = ("over_prompts", "over_seeds", "jointly")
    assert low == min(block[kind]["low"] for kind in kinds)
    assert high == max(block[kind]["high"] for kind in kinds)
    assert (c["verdict"]["low"], c["verdict"]["high"]) == (low, high)


def test_seeds_of_one_rate_leave_no_interval_for_new_seeds():
    row = [1.0, 0.5, 0.0, 1.0, 1.0, 0.0]
    rate = crossed([row, row[::-1]])
    block = {
        "seeds": 2,
        "over_prompts": {"low": rate.prompt_low, "high": rate.prompt_high},
        "over_seeds": {"low": rate.seed_low, "high": rate.seed_high},
        "jointly": {"low": rate.joint_low, "high": rate.joint_high},
    }
    assert rate.seed_low is None
    assert rate.prompt_low is not None
    assert widest(block) == (None, None)
    assert widest({**block, "seeds": 1}) == (None, None)


def test_rows_that_name_the_pair_the_other_way_round_are_turned():
    outcomes = {
        ("grpo/seed=1", "ppo/seed=1", "p0"): "win",
        ("ppo/seed=1", "grpo/seed=1", "p1"): "win",
        ("sft", "ppo/seed=2", "p0"): "tie",
        ("ppo/seed=1", "grpo/seed=2", "p9"): "win",
        ("grpo@k4/seed=1", "ppo/seed=1", "p9"): "win",
        ("canary/same", "canary/same/other", "p9"): "tie",
    }
    assert results_between(outcomes, "ppo", "grpo") == {1: {"p0": "loss", "p1": "win"}}
    assert results_between(outcomes, "ppo", "sft") == {2: {"p0": "tie"}}


def test_missing_verdicts_are_counted_and_bounded():
    study = fake_study()
    for row in study["judgements"]:
        if (row["system_b"], row["prompt_id"]) == ("grpo/seed=42", "p005"):
            row["verdict"] = "unparsed"
    c, _ = compare(*study.inputs())
    one = c["win_rates"]["ppo_vs_grpo"]["per_seed"]["42"]
    points = one["wins"] + one["ties"] / 2
    assert one["missing"] == 1
    assert one["rate_if_missing_lost"] == pytest.approx(points / 60)
    assert one["rate_if_missing_won"] == pytest.approx((points + 1) / 60)
    assert one["rate_if_missing_lost"] < one["rate"] < one["rate_if_missing_won"]
    assert c["win_rates"]["ppo_vs_grpo"]["crossed"]["prompts"] <= 59


def test_without_gold_its_metrics_are_absent_and_not_zero(made):
    _, c = made(gold=False, judged=False)
    assert not [name for name in c["metrics"] if "gold" in name]
    assert "gold" not in json.dumps([row["final"] for row in c["runs"]])
    assert [row["metric"] for row in c["holm"]] == [
        "eval/score_mean",
        "eval/kl_to_reference",
        "eval/response_length",
        "eval/perplexity",
    ]


def test_without_a_judge_the_effect_size_metric_stands_in_and_says_so(made):
    _, c = made(gold=False, judged=False)
    assert (c["judge"]["judged"], c["verdict"]["primary"]) == (False, False)
    assert c["verdict"]["metric"] == "eval/score_mean"
    assert {"what": "win rate ppo v grpo", "reason": "not judged"} in c["not_estimable"]
    assert "win_rate" not in c["metrics"]


def test_one_seed_has_no_effect_size_and_a_reason():
    c, metrics = compare(*fake_study(seeds=(42,)).inputs())
    effect = c["metrics"]["eval/score_mean"]["cohens_d"]
    assert effect["d"] is None
    assert "n = 1" in effect["reason"]
    assert c["verdict"]["word"] == "not estimable"
    assert c["metrics"]["eval/score_mean"]["difference"]["estimate"] is not None
    assert set(metrics) == {f"evaluation/win_rate{end}" for end in ("", "_low", "_high")}
    one = c["win_rates"]["ppo_vs_grpo"]["per_seed"]["42"]
    assert (metrics["evaluation/win_rate_low"], metrics["evaluation/win_rate_high"]) == (one["low"], one["high"])
    assert {"what": "ppo/seed=123", "reason": "planned, but no such run was found"} in c["not_estimable"]


def test_study_metrics_are_the_numbers_of_the_comparison(made):
    study, c = made()
    _, metrics = compare(*study.inputs())
    assert metrics == {
        "evaluation/win_rate": c["verdict"]["estimate"],
        "evaluation/win_rate_low": c["verdict"]["low"],
        "evaluation/win_rate_high": c["verdict"]["high"],
        "evaluation/cohens_d": c["metrics"]["eval/score_mean"]["cohens_d"]["d"],
    }


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda f: f["history.jsonl"].pop(), "ends at iteration 79 of 80"),
        (lambda f: f["run.json"].update(status="failed"), "says failed"),
        (lambda f: f["run.json"].update(status="killed"), "says killed"),
        (lambda f: f["history.jsonl"][-1].pop("eval/score_mean"), "has no evaluation"),
        (lambda f: f.pop("history.jsonl"), "has no history"),
    ],
)
def test_a_run_that_is_not_complete_is_left_out_by_name(change, reason):
    study = fake_study(judged=False)
    change(study["files"]["ppo/seed=123"])
    c, _ = compare(*study.inputs())
    row = next(r for r in c["runs"] if r["name"] == "ppo/seed=123")
    assert reason in row["left_out"]
    assert c["metrics"]["eval/score_mean"]["n"] == {"ppo": 2, "grpo": 3}
    assert list(c["metrics"]["eval/score_mean"]["per_seed"]["ppo"]) == ["42", "777"]
    assert c["metrics"]["eval/score_mean"]["paired"]["seeds"] == [42, 777]
    assert any(n["what"] == "ppo/seed=123" and reason in n["reason"] for n in c["not_estimable"])
    check = next(e for e in c["equal"] if e["check"] == "every planned seed in both methods")
    assert check["held"] is False
    assert "ppo: 123" in check["detail"]


def test_a_complete_run_counts_while_its_process_still_runs():
    study = fake_study(judged=False)
    for files in study["files"].values():
        if "run.json" in files:
            files["run.json"]["status"] = "running"
    c, _ = compare(*study.inputs())
    assert c["metrics"]["eval/score_mean"]["n"] == {"ppo": 3, "grpo": 3}


def test_what_should_be_equal_is_looked_up():
    study = fake_study(judged=False)
    study["files"]["grpo/seed=777"]["run.json"]["fingerprints"]["reward_model"] = "a" * 64
    study["files"]["grpo/seed=777"]["history.jsonl"][-1]["budget/responses"] = 1.0
    study["files"]["reward_model"]["run.json"] = {"fingerprints": {"sft": "trained again"}}
    c, _ = compare(*study.inputs())
    held = {e["check"]: e["held"] for e in c["equal"]}
    assert held["same reward model (fingerprint)"] is False
    assert held["same number of sampled responses"] is False
    assert held["same SFT model (fingerprint)"] is False, "the baseline's answers are another model's"
    del study["files"]["reward_model"]["run.json"]
    c, _ = compare(*study.inputs())
    assert {e["check"]: e["held"] for e in c["equal"]}["same SFT model (fingerprint)"] is True


def test_unplanned_seeds_are_used_and_said():
    c, _ = compare(*fake_study(seeds=(42, 123, 777, 5), judged=False).inputs())
    assert c["metrics"]["eval/score_mean"]["n"] == {"ppo": 4, "grpo": 4}
    assert c["metrics"]["eval/score_mean"]["permutation"]["floor"] == pytest.approx(2 / 70)
    check = next(e for e in c["equal"] if e["check"] == "only the planned seeds")
    assert (check["held"], check["detail"]) == (False, "beyond the plan: 5")


def test_other_methods_and_variants_do_not_enter(made):
    _, plain = made()
    _, c = made(families=("ppo", "grpo", "grpo@k4", "rloo"))
    assert c["metrics"]["eval/score_mean"] == plain["metrics"]["eval/score_mean"]
    assert {r["family"] for r in c["runs"]} == {"ppo", "grpo", "grpo@k4", "rloo"}
    assert c["win_rates"]["ppo_vs_grpo"]["per_seed"] == plain["win_rates"]["ppo_vs_grpo"]["per_seed"]


def test_no_run_at_all_is_a_comparison_of_nothing(made):
    _, c = made(seeds=[])
    assert c["metrics"] == {}
    assert c["verdict"]["word"] == "not estimable"
    assert {"what": "every metric", "reason": "no finished run of either method"} in c["not_estimable"]


def test_not_finite_values_are_no_values():
    study = fake_study(judged=False)
    study["files"]["ppo/seed=42"]["history.jsonl"][-1]["eval/perplexity"] = None
    study["files"]["ppo/seed=123"]["history.jsonl"][-1]["eval/perplexity"] = math.inf
    c, _ = compare(*study.inputs())
    assert c["metrics"]["eval/perplexity"]["n"] == {"ppo": 1, "grpo": 3}
    assert c["metrics"]["eval/perplexity"]["cohens_d"]["d"] is None
    json.dumps(c, allow_nan=False)


def test_equal_inputs_give_equal_bytes():
    first, second = (json.dumps(compare(*fake_study().inputs())[0]) for _ in range(2))
    assert first == second


def test_the_fingerprint_is_that_of_the_protocol(made):
    study, c = made()
    changed, _ = compare(*study.inputs(protocol={**PROTOCOL, "margin": 0.02}))
    assert changed["protocol"]["fingerprint"] != c["protocol"]["fingerprint"]
    again, _ = compare(*study.inputs(reporting={**REPORTING, "title": "Other"}))
    assert again["protocol"]["fingerprint"] == c["protocol"]["fingerprint"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method_b": "ppo"}, "two methods"),
        ({"confidence": 95.0}, "confidence"),
        ({"power": 0.01}, "power"),
        ({"margin": 0.5}, "one half"),
        ({"effect_size_margin": -1.0}, "negative"),
        ({"seeds": [1, 1]}, "distinct"),
        ({"extra": 1}, "extra"),
    ],
)
def test_a_protocol_that_decides_nothing_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        build(ProtocolParameters, {**PROTOCOL, **change}, "protocol")


def test_a_report_that_shows_nothing_is_refused():
    with pytest.raises(ConfigError, match="bootstrap_draws"):
        build(ReportingParameters, {**REPORTING, "bootstrap_draws": 0}, "reporting")
    with pytest.raises(ConfigError, match="answers_shown"):
        build(ReportingParameters, {**REPORTING, "answers_shown": -1}, "reporting")


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [(0.501, 0.6, "better"), (0.499, 0.6, "not resolved"), (0.4, 0.499, "worse"), (0.46, 0.54, "equivalent")],
)
def test_the_verdict_compares_the_rate_with_one_half(low, high, word):
    inner = {"low": 0.5, "high": 0.5}
    crossed_block = {"seeds": 3, "estimate": 0.5, "reason": None, "over_prompts": {"low": low, "high": high}}
    crossed = {**crossed_block, "over_seeds": {"low": low, "high": high}, "jointly": {"low": low, "high": high}}
    rates = {"ppo_vs_grpo": {"crossed": crossed, "if_missing": {"missing": 0, "of": 300}}}
    protocol = build(ProtocolParameters, PROTOCOL, "protocol")
    verdict = verdict_block({"win_rates": rates, "metrics": {}}, protocol)
    assert (verdict["word"], verdict["low"], verdict["high"]) == (word, low, high)
    rates["ppo_vs_grpo"]["crossed"]["over_seeds"] = inner
    assert verdict_block({"win_rates": rates, "metrics": {}}, protocol)["low"] == min(low, 0.5)


def test_each_interval_of_a_win_rate_is_the_one_its_label_names(made):
    study, c = made()
    pairs = {k: resolve(*v) for k, v in verdicts_by_pair(study["judgements"]).items()}
    results = results_between(pairs, "ppo", "grpo")
    points = {"win": 1.0, "tie": 0.5, "loss": 0.0}
    prompts = [p for p in results[42] if all(results[s][p] for s in (42, 123, 777))]
    expected = crossed([[points[results[s][p]] for p in prompts] for s in (42, 123, 777)])
    block = c["win_rates"]["ppo_vs_grpo"]["crossed"]
    kinds = ("over_prompts", "over_seeds", "over_both", "jointly")
    found = [block[kind][end] for kind in kinds for end in ("low", "high")]
    assert found == [
        expected.prompt_low,
        expected.prompt_high,
        expected.seed_low,
        expected.seed_high,
        expected.two_way_low,
        expected.two_way_high,
        expected.joint_low,
        expected.joint_high,
    ]
    assert block["jointly"]["df"] == expected.joint_df
    assert block["estimate"] == expected.rate


def test_final_answers_are_compared_prompt_by_prompt(made):
    study, c = made()
    block = c["metrics"]["responses/score_mean"]

    def scores(run):
        return np.array([r["reward_model_score"] for r in study["files"][run]["responses.jsonl"]])

    rows = np.array([scores(f"ppo/seed={s}") - scores(f"grpo/seed={s}") for s in (42, 123, 777)])
    assert block["over_prompts"]["estimate"] == pytest.approx(rows.mean())
    error = rows.mean(axis=0).std(ddof=1) / np.sqrt(60)
    assert block["over_prompts"]["over_prompts"]["se"] == pytest.approx(error)
    assert block["per_seed"]["ppo"]["42"] == pytest.approx(scores("ppo/seed=42").mean())


def test_a_metric_that_one_method_lacks_is_shown_and_not_estimable():
    study = fake_study(judged=False)
    for seed in (42, 123, 777):
        for row in study["files"][f"ppo/seed={seed}"]["history.jsonl"]:
            row.pop("eval/perplexity", None)
    c, _ = compare(*study.inputs())
    block = c["metrics"]["eval/perplexity"]
    assert block["n"] == {"ppo": 0, "grpo": 3}
    assert block["difference"]["estimate"] is None
    assert any(row["what"].startswith("eval/perplexity") for row in c["not_estimable"])


def test_a_field_that_some_answers_lack_has_no_mean():
    study = fake_study(judged=False)
    study["files"]["ppo/seed=42"]["responses.jsonl"][3].pop("gold_score")
    c, _ = compare(*study.inputs())
    assert c["metrics"]["responses/gold_mean"]["n"] == {"ppo": 2, "grpo": 3}


def test_costs_are_in_their_units_and_the_baseline_is_where_the_arms_start(made):
    study, c = made()
    seconds = study["files"]["ppo/seed=42"]["timing.jsonl"][-1]["budget/seconds"]
    assert c["costs"]["budget/seconds"]["per_seed"]["ppo"]["42"] == pytest.approx(seconds / 60)
    assert c["costs"]["budget/seconds"]["unit"] == "minutes"
    assert c["costs"]["memory/peak_mb"]["mean"]["ppo"] == pytest.approx(918)
    starts = [
        study["files"][f"{m}/seed={s}"]["history.jsonl"][0]["eval/gold_mean"]
        for m in ("ppo", "grpo")
        for s in (42, 123, 777)
    ]
    assert c["baseline"]["eval/gold_mean"] == pytest.approx(np.mean(starts))
    answers = [r["reward_model_score"] for r in study["files"]["sft"]["responses.jsonl"]]
    assert c["baseline"]["responses/score_mean"] == pytest.approx(np.mean(answers))
