"""What has no number says why: no NaN, no infinity, no silent gap, whatever a study lacks."""

import json
import re

import pytest
from fake_study import REPORTING, fake_study

from gemma_alignment.pipelines.reporting.nodes import compare, render_report

NOT_APPLICABLE = {"df", "p_one_sided", "higher_is_better", "variant", "rate_if_missing_lost", "rate_if_missing_won",
                  "left_out", "mlflow_run_id", "mlflow_view", "most", "source", "note", "reason"}  # fmt: skip
"""Keys whose null says something: a test has no degrees of freedom, a metric no better side, nothing is missing."""


def without_variance(study):
    """Every seed of every method ends with the same numbers and the same answers."""
    for folder, files in study["files"].items():
        if "seed=" in folder:
            for row in files["history.jsonl"]:
                row.update({key: 1.0 for key in row if key.startswith("eval/")})
            for row in files["responses.jsonl"]:
                row.update(reward_model_score=1.0, gold_score=5.0, num_tokens=10, response="same", ended=True)
    return study


def nothing_but_ties(study):
    for row in study["judgements"]:
        row["verdict"] = "tie"
    return study


def without(study, *folders):
    for folder in folders:
        study["files"].pop(folder)
    return study


STUDIES = {
    "whole": fake_study,
    "one seed": lambda: fake_study(seeds=(42,)),
    "one seed, nothing but ties": lambda: nothing_but_ties(fake_study(seeds=(42,))),
    "nothing judged, no gold": lambda: fake_study(judged=False, gold=False),
    "no variance": lambda: without_variance(fake_study()),
    "nothing but ties": lambda: nothing_but_ties(fake_study()),
    "a run is missing": lambda: without(fake_study(), "grpo/seed=777"),
    "one seed against three": lambda: without(fake_study(), "grpo/seed=777", "grpo/seed=42"),
    "one method": lambda: fake_study(families=("ppo",)),
    "no run": lambda: fake_study(families=()),
}


def gaps(node, path, explained):
    """Paths of nulls without a reason in their own or an enclosing block."""
    if isinstance(node, dict):
        explained = explained or bool(node.get("reason")) or bool(node.get("detail"))
        for key, value in node.items():
            if value is None and key not in NOT_APPLICABLE and not explained:
                yield f"{path}/{key}"
            yield from gaps(value, f"{path}/{key}", explained)
    elif isinstance(node, list):
        for value in node:
            yield from gaps(value, path, explained)


def is_listed(path, comparison):
    """Whether the list of what is not estimable says it, or what it belongs to is absent altogether."""
    what = [row["what"] for row in comparison["not_estimable"]]
    top, _, rest = path.lstrip("/").partition("/")
    if top == "metrics":
        name = next(name for name in comparison["metrics"] if rest.startswith(name))
        return any(row.startswith(f"{name}:") for row in what)
    if top == "win_rates":
        return any(row == f"win rate {rest.split('/')[0].replace('_vs_', ' v ')}" for row in what)
    if top == "costs":
        return any(row.startswith(f"{rest.rsplit('/', 1)[1]}/seed=") for row in what)
    if path == "/limits/magnitude":
        return not comparison["metrics"] or any(row.startswith("eval/score_mean: Cohen's d") for row in what)
    without_gold = "eval/gold_mean" not in comparison["metrics"]
    return without_gold and path in ("/overoptimization", "/reward_model_card/gold")


@pytest.mark.parametrize("name", STUDIES)
def test_every_gap_has_its_reason(name):
    study = STUDIES[name]()
    comparison, metrics = compare(*study.inputs())
    text = json.dumps(comparison, allow_nan=False)
    assert "Infinity" not in text + json.dumps(metrics)
    comparison = json.loads(text)
    found = {path for path in gaps(comparison, "", False) if not is_listed(path, comparison)}
    assert found == set()
    page = render_report(comparison, *study.inputs()[:3], REPORTING)
    words = re.sub(r"<script.*?</script>|<style.*?</style>|<[^>]+>", " ", page, flags=re.S).lower()
    assert not re.search(r"\bnan\b|\binf\b|\binfinity\b", words)


def test_one_seed_of_nothing_but_ties_claims_no_certainty():
    _, metrics = compare(*STUDIES["one seed, nothing but ties"]().inputs())
    assert metrics["evaluation/win_rate"] == 0.5
    assert metrics["evaluation/win_rate_low"] < 0.45
    assert metrics["evaluation/win_rate_high"] > 0.55


def test_what_is_equal_at_every_budget_is_listed_too():
    comparison, _ = compare(*STUDIES["no variance"]().inputs())
    listed = {row["what"]: row["reason"] for row in comparison["not_estimable"]}
    assert "variance" in listed["eval/score_mean at equal budget/responses: Cohen's d"]
    assert "variance" in listed["eval/score_mean: Cohen's d"]
    assert comparison["metrics"]["eval/score_mean"]["power"]["reason"] == "no d was seen"
