"""The embedded world through the real graph, at toy size: what a coefficient does, and what a bad number does."""

import json

import pytest

from gemma_alignment.datasets.checkpoint_store import saved
from gemma_alignment.errors import UserError
from gemma_alignment.training import policy_optimization

pytestmark = pytest.mark.pipeline


@pytest.fixture
def prepared(project, shared_start):
    """Data, SFT model and reward model of the embedded world, made once."""
    project.registry = "gemma_alignment.pipeline_registry"
    return shared_start(project, "real", lambda: project.run("data_processing", "sft", "reward_model"))


def history(project, folder):
    text = (project.data / "07_model_output" / folder / "history.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.learning
@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_higher_coefficient_leaves_a_lower_kl(prepared, method):
    """From the same start, with the same random numbers."""
    ends = []
    for coefficient in (0.0, 10.0):
        name = f"coef-{coefficient}"
        prepared.run(
            method, seed=1, variant=name, kl_control__schedule=[coefficient], kl_control__max_rise=0.0,
            kl_control__ceiling=10.0,
            policy_optimization__num_iterations=10, policy_optimization__learning_rate=5e-3,
            policy_optimization__eval_every=10, policy_optimization__eval_prompts=16,
        )  # fmt: skip
        rows = history(prepared, f"{method}@{name}/seed=1")
        assert rows[0]["eval/kl_to_reference"] == rows[1]["policy/kl_to_reference"] == 0
        assert {row["policy/kl_coef"] for row in rows} == {coefficient}
        ends.append(rows[-1]["eval/kl_to_reference"])
    free, held = ends
    assert abs(held) < 0.3 * free, ends


def test_a_bad_number_stops_the_arm_with_its_last_good_state_and_a_status_that_says_so(prepared, monkeypatch):
    """In iteration 3 of 3, before the optimizer steps; iteration 2 was not due for a checkpoint."""
    real, calls = policy_optimization.clipped, []

    def poisoned(parameters, *args):
        calls.append(parameters)
        if len(calls) == 3:
            next(iter(parameters.values())).grad[0, 0] = float("nan")
        return real(parameters, *args)

    with monkeypatch.context() as patch:
        patch.setattr(policy_optimization, "clipped", poisoned)
        with pytest.raises(UserError) as error:
            prepared.run("grpo", policy_optimization__checkpoint_every=50)
    said = str(error.value)
    assert said.startswith("grpo, iteration 3, policy, prompts ")
    assert ": the gradient of base_model.model.model." in said and "is not finite. The optimizer did not step" in said
    assert [row["iteration"] for row in history(prepared, "grpo/seed=42")] == [0, 1, 2]
    assert saved(prepared.data / "07_model_output/grpo/seed=42/checkpoints") == [0, 2]
    assert prepared.states()["grpo-seed42"] == "FAILED"
    record = prepared.record("grpo/seed=42")
    assert record.status == "failed"
    assert record.error is not None and said in record.error
    prepared.run("grpo", policy_optimization__checkpoint_every=50, resume=True)
    assert prepared.record("grpo/seed=42").status == "finished"
    assert [row["iteration"] for row in history(prepared, "grpo/seed=42")] == [0, 1, 2, 3]
