"""The one loop: gradients that do not depend on the split, exact starts, equal runs, refusals."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from toy import PROMPTS, chat, disturb, rounded, settings, shared

from gemma_alignment.config import build
from gemma_alignment.errors import UserError
from gemma_alignment.modeling import states
from gemma_alignment.modeling.packing import pack
from gemma_alignment.parameters.training import PolicyOptimizationParameters
from gemma_alignment.schemas import Minibatch
from gemma_alignment.training.kl_control import KLController
from gemma_alignment.training.methods import METHODS
from gemma_alignment.training.policy_evaluation import HeldOut
from gemma_alignment.training.policy_optimization import Run, optimize
from gemma_alignment.training.score_normalization import score_normalizer


def method(name: str, **changes: Any) -> Any:
    with open(f"conf/base/parameters_{name}.yml", encoding="utf-8") as file:
        values = yaml.safe_load(file)[name]
    return build(METHODS[name], {**values, **changes}, name)


def run(
    name: str = "grpo", seed: int = 1, shared_changes: dict[str, Any] | None = None, base: Any = None, **changes: Any
) -> Run:  # fmt: skip
    how = method(name, **({} if METHODS[name].needs_critic else {"group_size": 4}), **changes)
    model = shared(("policy", "reward", "critic") if how.needs_critic else ("policy", "reward"), base=base)
    disturb(model, "reward")
    values = {
        "num_iterations": 3, "responses_per_iteration": 8, "minibatch_size": 4, "microbatch_size": 4,
        "learning_rate": 5e-3, "critic_learning_rate": 5e-3, "adam_epsilon": 1e-5, "max_grad_norm": 1.0,
        "missing_eos_penalty": 1.0, "eval_every": 2, "eval_prompts": 2, "samples_per_evaluation": 1,
        "checkpoint_every": 1, "checkpoints_kept": 2,
    }  # fmt: skip
    chosen = [(chat().encode_prompt(PROMPTS[0]), chat().encode_response("apple and pear"))]
    return Run(
        method=how, model=model, chat=chat(), prompts=[(f"p{i}", text) for i, text in enumerate(PROMPTS)],
        held_out=HeldOut([("p0", PROMPTS[0]), ("p1", PROMPTS[1])], chosen),
        settings=build(PolicyOptimizationParameters, {**values, **(shared_changes or {})}, "policy_optimization"),
        rollout=settings(), kl_controller=KLController((0.05, 0.02, 0.01), 0.5, 8),
        score_normalizer=score_normalizer(how.normalize_scores, 0.0, 1.0, 0.95), scale=(0.0, 1.0), seed=seed,
        evaluation_seed=7,
        gold=lambda prompt, response: float(len(response)), peak_memory=lambda: 1.0,
    )  # fmt: skip


def adapters(model: Any) -> dict[str, torch.Tensor]:
    """A copy of everything: the base, every adapter and every head."""
    heads = {f"head.{role}.{key}": v for role, head in model.heads.items() for key, v in head.state_dict().items()}
    return {key: value.clone() for key, value in {**model.peft.state_dict(), **heads}.items()}


def trained(one: Run) -> tuple[str, ...]:
    """The roles that learn."""
    return ("policy", "critic") if one.method.needs_critic else ("policy",)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_policy_and_critic_learn_from_one_packing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed: list[Any] = []
    monkeypatch.setattr(states, "pack", lambda given: packed.append(given) or pack(given))
    one = run(name, shared_changes={"num_iterations": 1})
    list(optimize(one))
    micro = [given for given in packed if isinstance(given, Minibatch)]
    assert len(micro) == one.method.update_epochs * 8 // 4
    assert len({id(given) for given in micro}) == len(micro)


@pytest.mark.parametrize("name", METHODS)
def test_starts_at_the_reference_with_ratio_one(name: str) -> None:
    one = run(name, shared_changes={"minibatch_size": 8})
    start, first, *_ = list(optimize(one))
    assert start.metrics["eval/kl_to_reference"] == 0
    assert first.metrics["policy/kl_to_reference"] == 0
    assert abs(first.metrics["policy/ratio_mean"] - 1) < 1e-5
    assert abs(first.metrics["policy/approx_kl"]) < 1e-5
    assert first.metrics["policy/clip_fraction"] == 0


@pytest.mark.parametrize("name", ["ppo", "grpo"])
@pytest.mark.parametrize("kind", ["bfloat16", "nf4"])
def test_where_numbers_are_rounded_the_loop_starts_exactly_at_the_reference(
    name: str, kind: str, tmp_path: Path
) -> None:
    """In bf16 and 4 bits a token's log-probability depends on its micro-batch, so the ratio is 1 within .02 alone."""
    one = run(name, base=rounded(kind, tmp_path), shared_changes={"minibatch_size": 8, "microbatch_size": 3})
    assert not one.model.is_exact
    assert {p.dtype for p in one.model.parameters_of("policy")} == {torch.float32}
    before = adapters(one.model)
    start, first, *later = list(optimize(one))
    assert start.metrics["eval/kl_to_reference"] == 0
    assert first.metrics["policy/kl_to_reference"] == 0
    for record in (first, *later):
        assert abs(record.metrics["policy/ratio_mean"] - 1) < 0.02
        assert abs(record.metrics["policy/approx_kl"]) < 0.02
    assert later[-1].metrics["policy/kl_to_reference"] != 0
    moved = {key for key, value in adapters(one.model).items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if any(f".{role}." in key for role in trained(one))}


@pytest.mark.parametrize("name", METHODS)
def test_scores_are_normalised_before_an_iteration_is_taken_in_whole_and_once(name: str) -> None:
    """No information from the future: what an iteration is normalised with comes from before it."""
    one, calls = run(name), []
    real = one.score_normalizer

    class Noted(type(real)):  # type: ignore[misc]
        def normalize(self, scores: torch.Tensor) -> torch.Tensor:
            calls.append(("normalize", scores.tolist(), self.state_dict()))
            return super().normalize(scores)

        def update(self, scores: torch.Tensor) -> None:
            calls.append(("update", scores.tolist(), self.state_dict()))
            super().update(scores)

    list(optimize(Run(**{**vars(one), "score_normalizer": Noted(0.0, 1.0, 0.95)})))
    assert [call[0] for call in calls] == ["normalize", "update"] * 3
    for (_, seen, before), (_, taken, still) in zip(calls[::2], calls[1::2], strict=True):
        assert len(seen) == 8
        assert seen == taken
        assert before == still


@pytest.mark.parametrize("name", METHODS)
def test_only_the_trained_adapters_move_and_the_rest_stays_bit_identical(name: str) -> None:
    one = run(name)
    before = adapters(one.model)
    list(optimize(one))
    moved = {key for key, value in adapters(one.model).items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if any(f".{role}." in key for role in trained(one))}


@pytest.mark.parametrize("name", METHODS)
def test_the_split_into_micro_batches_changes_nothing(name: str) -> None:
    """One iteration, one optimizer step, 1 x 8 against 8 x 1: the same adapters within rounding."""
    found = []
    for size in (8, 3, 1):
        one = run(name, shared_changes={"minibatch_size": 8, "microbatch_size": size, "num_iterations": 1})
        list(optimize(one))
        found.append(adapters(one.model))
    for other in found[1:]:
        for key, value in found[0].items():
            torch.testing.assert_close(other[key], value, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["ppo", "grpo"])
def test_the_same_seed_gives_the_same_run_and_another_a_different_one(name: str) -> None:
    first, again, other = ([r.metrics for r in optimize(run(name, seed=s))] for s in (1, 1, 2))
    assert first == again
    assert first != other


def test_before_any_update_every_seed_and_method_is_evaluated_to_the_same_numbers() -> None:
    """The same weights, prompts and random numbers: what differs between seeds later is the training."""
    starts = [next(optimize(run(name, seed=s))) for name in ("ppo", "grpo") for s in (1, 2)]
    held_out = [{k: v for k, v in one.metrics.items() if k.startswith("eval/")} for one in starts]
    assert held_out[0] and all(one == held_out[0] for one in held_out)
    assert all(one.samples == starts[0].samples for one in starts)


def test_the_rate_falls_in_a_straight_line_and_adam_has_the_configured_epsilon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[torch.optim.Optimizer] = []
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *args: made.append(self))
    one = run("ppo", shared_changes={"minibatch_size": 8, "critic_learning_rate": 9e-3})
    rates = []
    for record in optimize(one):
        if record.iteration:
            rates.append([optimizer.param_groups[0]["lr"] for optimizer in made[-2:]])
    assert rates == [pytest.approx([rate * share for rate in (5e-3, 9e-3)]) for share in (1, 2 / 3, 1 / 3)]
    assert {optimizer.param_groups[0]["eps"] for optimizer in made} == {1e-5}


def test_arms_log_the_same_keys_and_one_that_does_not_apply_is_absent() -> None:
    ppo, grpo = (set().union(*(r.metrics for r in optimize(run(name)))) for name in ("ppo", "grpo"))
    assert ppo - grpo == {"value/loss", "value/explained_variance", "value/grad_norm"}
    assert grpo - ppo == {"rollout/zero_variance_groups"}


def test_budgets_are_equal_across_arms() -> None:
    for name in METHODS:
        records = list(optimize(run(name)))
        assert records[-1].metrics["budget/responses"] == 24
        assert [r.iteration for r in records] == [0, 1, 2, 3]
        assert [r.iteration for r in records if "eval/score_mean" in r.metrics] == [0, 2, 3]


def test_the_arms_differ_only_where_listed() -> None:
    allowed = {"group_size", "kl_placement", "normalize_advantages", "reduction"}
    only_ppo = {"gamma", "gae_lambda", "value_coef", "value_clip"}
    ppo, grpo = vars(method("ppo")), vars(method("grpo"))
    assert set(ppo) - set(grpo) == only_ppo
    assert {key for key in grpo if ppo[key] != grpo[key]} == allowed


def test_a_group_size_that_does_not_divide_the_budget_is_refused() -> None:
    with pytest.raises(ValueError, match=r"group_size 3 does not divide responses_per_iteration 8"):
        next(optimize(run("grpo", shared_changes={}, normalize_scores="ema").__class__(
            **{**vars(run("grpo")), "method": SimpleNamespace(group_size=3, needs_critic=False)}
        )))  # fmt: skip


def test_a_score_that_is_not_a_number_stops_before_any_weight_changes() -> None:
    one = run("grpo")
    before, records = adapters(one.model), optimize(one)
    next(records)
    with torch.no_grad():
        one.model.heads["reward"].bias.fill_(float("nan"))
    with pytest.raises(UserError, match=r"Iteration 1: scores is not finite for the prompts p"):
        next(records)
    after = adapters(one.model)
    assert after.pop("head.reward.bias").isnan()
    assert all(torch.equal(value, before[key]) for key, value in after.items())


def test_a_drifted_policy_is_caught_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """The old log-probabilities at another temperature: the classic silent mismatch."""
    from gemma_alignment.training import policy_optimization

    real = policy_optimization.collect

    def wrong(model: Any, *args: Any, **kwargs: Any) -> Any:
        found = real(model, *args, **kwargs)
        object.__setattr__(found, "old_logprobs", found.old_logprobs * 0.9)
        return found

    monkeypatch.setattr(policy_optimization, "collect", wrong)
    with pytest.raises(UserError, match="another temperature"):
        list(optimize(run("grpo")))


@pytest.mark.parametrize(("off", "refused"), [(0.3, False), (0.6, True)])
def test_one_row_may_be_off_in_half_precision_where_its_minibatch_is_not(
    off: float, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In micro-batches of one row, the mean of that row's few tokens alone would be beyond .02."""
    from gemma_alignment.training import policy_optimization

    real = policy_optimization.collect
    one = run("grpo", shared_changes={"minibatch_size": 8, "microbatch_size": 1, "num_iterations": 1})
    monkeypatch.setattr(type(one.model), "is_exact", False)

    def wrong(*args: Any, **kwargs: Any) -> Any:
        found = real(*args, **kwargs)
        found.old_logprobs[3, 0] += off
        assert (1 - math.exp(-off)) / float(found.response_mask[3].sum()) > 0.02
        return found

    monkeypatch.setattr(policy_optimization, "collect", wrong)
    if refused:
        with pytest.raises(UserError, match=r"by up to 0\.6 nats a token \(prompt p\d\)"):
            list(optimize(one))
    else:
        first = list(optimize(one))[-1].metrics
        assert abs(first["policy/ratio_mean"] - 1) < 0.02
