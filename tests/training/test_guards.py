"""What stops an update: before any weight moves, with the iteration, the tensor and the prompts by name."""

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_policy_optimization import adapters, run
from torch import nn

from gemma_alignment.errors import UserError
from gemma_alignment.schemas import Experience, Minibatch
from gemma_alignment.training import policy_optimization
from gemma_alignment.training.guards import FirstRatio, check_finite, check_loss, check_metrics, named
from gemma_alignment.training.policy_optimization import optimize
from gemma_alignment.training.schedule import clipped, guarded_step

NAN, INF = float("nan"), float("inf")


def minibatch(**changes: Any) -> Minibatch:
    """Three rows of two tokens, the last token of row c padding."""
    mask = torch.tensor([[True, True], [True, True], [True, False]])
    zeros = torch.zeros(3, 2)
    tokens = torch.zeros(3, 2, dtype=torch.long)
    values = {
        "prompt_tokens": tokens, "prompt_mask": mask, "response_tokens": tokens, "response_mask": mask,
        "old_logprobs": zeros, "ref_logprobs": zeros, "advantages": zeros, "values": None, "returns": None,
        "kl_coef": 0.1, "prompt_ids": ("a", "b", "c"),
    }  # fmt: skip
    return Minibatch(**{**values, **changes})


def test_the_prompts_of_rows_are_named_each_once() -> None:
    assert named(("a", "a", "b"), [0, 1]) == "prompt a"
    assert named(("a", "a", "b"), [0, 1, 2]) == "prompts a, b"
    assert named(tuple("abcde"), range(5)) == "prompts a, b, c and 2 more"
    assert named((), [0, 4]) == "prompts 0, 4"


def test_ids_follow_the_rows_that_are_selected() -> None:
    assert minibatch().select(torch.tensor([2, 0])).prompt_ids == ("c", "a")
    assert [part.prompt_ids for part in minibatch().split(2)] == [("c", "a"), ("b",)]


@pytest.mark.parametrize(
    ("loss", "outputs", "changes", "message"),
    [
        (NAN, [[0, 0], [0, NAN], [0, 0]], {}, "here: logprobs is not finite for the prompt b."),
        (0.0, [[0, -INF], [0, 0], [0, 0]], {}, "here: logprobs is not finite for the prompt a."),
        (INF, None, {"advantages": torch.tensor([[0, 0], [0, 0], [INF, 0]])}, "here: advantages is not finite for the"),
        (INF, None, {"returns": torch.tensor([[NAN, 0], [0, 0], [NAN, 0]])}, "here: returns is not finite for"),
        (INF, None, {}, "here: loss is not finite for the prompts a, b, c."),
    ],
)  # fmt: skip
def test_the_first_bad_tensor_behind_a_loss_is_named(loss: float, outputs: Any, changes: Any, message: str) -> None:
    logprobs = torch.zeros(3, 2) if outputs is None else torch.tensor(outputs)
    with pytest.raises(UserError, match=re.escape(message)):
        check_loss(torch.tensor(loss), {"logprobs": logprobs}, minibatch(**changes), "here")


def test_what_stands_in_the_padding_is_no_error() -> None:
    outputs = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.0, NAN]])
    assert check_loss(torch.tensor(1.0), {"values": outputs}, minibatch(), "here") is None


@pytest.mark.parametrize("name", ["scores", "old_logprobs", "ref_logprobs", "values", "sampler_gap"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_whatever_was_sampled_is_checked_and_named(name: str, bad: float) -> None:
    of_the_update = {"advantages", "returns", "kl_coef"}
    from_batch = {key: value for key, value in vars(minibatch()).items() if key not in of_the_update}
    good = Experience(
        **{**from_batch, "values": torch.zeros(3, 2)}, ended=torch.ones(3, dtype=torch.bool), scores=torch.zeros(3),
        raw_scores=torch.zeros(3), group_size=1, sampler_gap=torch.zeros(3),
    )  # fmt: skip
    assert check_finite(good, 4) is None
    spoilt = getattr(good, name).clone()
    spoilt[1:] = bad
    with pytest.raises(UserError, match=rf"Iteration 4: {name} is not finite for the prompts b, c\."):
        check_finite(replace(good, **{name: spoilt}), 4)


CAUSES = (
    r"^Iteration 1: log-probabilities differ .* by up to {gap} nats a token \(prompt {worst}\), the probability "
    r"ratio by .* from 1 on average\. Likely causes: dropout left on, an adapter switched in between, another "
    r"temperature, padding that reaches the attention, or a sampler that computes something else\.$"
)


def check_first_ratio(logprobs: torch.Tensor, whole: Minibatch, exact: bool, size: int = 3) -> None:
    """What the loop does with its first minibatch, in micro-batches of ``size`` rows."""
    guard = FirstRatio(exact)
    for start in range(0, len(whole), size):
        rows = torch.arange(start, min(start + size, len(whole)))
        part = whole.select(rows)
        guard.add(logprobs[rows, : part.response_mask.shape[1]], part)
    guard.check(1)


@pytest.mark.parametrize("size", [3, 1])
@pytest.mark.parametrize(
    ("exact", "near", "far"),
    [
        (True, [9e-6] * 5, [1.1e-5] * 5),
        (True, [-9e-6] * 5, [-1.1e-5] * 5),
        (True, [1e-5, -1e-5, 1e-5, -1e-5, 0], [2e-5, -2e-5, 2e-5, -2e-5, 0]),  # the mean ratio is 1 in both
        (True, [4.9e-5, 0, 0, 0, 0], [1.1e-4, 0, 0, 0, 0]),
        (False, [0.019] * 5, [0.021] * 5),
        (False, [0.09, 0, 0, 0, 0], [0.51, 0, 0, 0, 0]),
        (False, [-0.1, 0, 0, 0, 0], [-0.2, 0.2, -0.2, 0.2, 0]),
    ],
)
def test_a_first_ratio_off_1_is_an_error_with_its_likely_causes(
    exact: bool, near: list[float], far: list[float], size: int
) -> None:
    def logprobs(gaps: list[float]) -> torch.Tensor:
        return torch.tensor([*gaps, 9.0]).view(3, 2)  # the 9 stands in the padding

    check_first_ratio(logprobs(near), minibatch(), exact, size)
    for gaps in (far, [NAN, 0, 0, 0, 0], [INF, 0, 0, 0, 0]):
        with pytest.raises(UserError, match=CAUSES.format(gap=".*", worst=".")):
            check_first_ratio(logprobs(gaps), minibatch(), exact, size)


@pytest.mark.parametrize("size", [3, 2, 1])
def test_the_first_ratio_is_asked_of_the_whole_minibatch_whatever_its_parts(size: int) -> None:
    """Row c has one token: its mean alone is .03, that of the minibatch's five tokens .006."""
    one_token = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.03, 9.0]])
    check_first_ratio(one_token, minibatch(), False, size)
    everywhere = torch.tensor([[0.03, 0.03], [0.03, 0.0], [0.03, 9.0]])
    with pytest.raises(UserError, match=CAUSES.format(gap=r"0\.03", worst="a")):
        check_first_ratio(everywhere, minibatch(), False, size)


@pytest.mark.parametrize("row", [0, 1, 2])
def test_the_prompt_with_the_largest_gap_is_named(row: int) -> None:
    logprobs = torch.full((3, 2), 0.01)
    logprobs[row, 0] = -0.7
    with pytest.raises(UserError, match=CAUSES.format(gap=r"0\.7", worst="abc"[row])):
        check_first_ratio(logprobs, minibatch(), False, 1)


@pytest.mark.parametrize("exact", [True, False])
def test_one_token_that_is_far_off_does_not_vanish_in_the_mean(exact: bool) -> None:
    zeros = torch.zeros(3, 20_000)
    real = {"response_mask": zeros == 0, "response_tokens": zeros.long()}
    many = minibatch(**real, old_logprobs=zeros, ref_logprobs=zeros, advantages=zeros)
    logprobs = zeros.clone()
    logprobs[1, 7] = -0.6
    assert (logprobs.exp() - 1).abs().mean() < 1e-5
    with pytest.raises(UserError, match=CAUSES.format(gap=r"0\.6", worst="b")):
        check_first_ratio(logprobs, many, exact)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_a_record_without_a_number_is_refused(bad: float) -> None:
    check_metrics({"policy/ratio_mean": 1.0, "value/loss": 0.0}, "ppo, iteration 2")
    with pytest.raises(UserError, match=rf"^ppo, iteration 2: policy/ratio_mean is {bad}\. The weights as they are"):
        check_metrics({"value/loss": 0.0, "policy/ratio_mean": bad, "policy/entropy": bad}, "ppo, iteration 2")


def gradients(**values: float) -> dict[str, nn.Parameter]:
    found = {name: nn.Parameter(torch.ones(2)) for name in values}
    for name, value in values.items():
        found[name].grad = torch.full((2,), value)
    return found


@pytest.mark.parametrize(("values", "bad"), [({"w": 1.0, "v": NAN, "u": NAN}, "v"), ({"w": INF, "v": 1.0}, "w")])
def test_the_first_bad_gradient_is_named_and_none_is_touched(values: dict[str, float], bad: str) -> None:
    parameters = gradients(**values)
    before = {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None}
    with pytest.raises(UserError, match=rf"here: the gradient of {bad} is not finite\. The optimizer did not step"):
        clipped(parameters, 1.0, "here")
    for name, gradient in before.items():
        assert torch.equal(parameters[name].grad.nan_to_num(7), gradient.nan_to_num(7))  # type: ignore[union-attr]


def test_a_tensor_without_a_gradient_stops_the_step() -> None:
    parameters = {"reached": torch.nn.Parameter(torch.ones(2)), "left out": torch.nn.Parameter(torch.ones(2))}
    parameters["reached"].sum().backward()
    with pytest.raises(RuntimeError, match="grpo, iteration 3: 1 of 2 tensors have no gradient, such as left out"):
        clipped(parameters, 1.0, "grpo, iteration 3")


def test_gradients_are_clipped_as_torch_does() -> None:
    ours, theirs = gradients(w=3.0, v=-4.0), gradients(w=3.0, v=-4.0)
    norm = clipped(ours, 1.0, "here")
    assert norm == float(torch.nn.utils.clip_grad_norm_(theirs.values(), 1.0)) == pytest.approx(50**0.5)
    assert all(torch.equal(ours[name].grad, theirs[name].grad) for name in ours)  # type: ignore[arg-type]


@pytest.mark.parametrize(("loss", "gradient"), [(NAN, 1.0), (1.0, NAN)])
def test_a_guarded_step_moves_no_weight(loss: float, gradient: float) -> None:
    parameters = gradients(w=gradient)
    with pytest.raises(UserError, match=r"SFT, step 3: the (loss is nan|gradient of w is not finite)"):
        guarded_step(torch.optim.SGD(parameters.values(), lr=1.0), parameters, loss, 1.0, "SFT, step 3")
    assert torch.equal(parameters["w"].data, torch.ones(2))


def test_a_bad_loss_in_the_loop_names_iteration_tensor_and_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    one = run("ppo")
    before = adapters(one.model)
    real = policy_optimization.minibatch_of

    def poisoned(*args: Any) -> Minibatch:
        found = real(*args)
        found.advantages[found.prompt_ids.index("p2"), 0] = NAN
        return found

    monkeypatch.setattr(policy_optimization, "minibatch_of", poisoned)
    one.settings.__dict__["minibatch_size"] = 8  # so that this is the first step
    with pytest.raises(UserError, match=r"ppo, iteration 1, policy: advantages is not finite for the prompt p2\."):
        list(optimize(one))
    assert all(torch.equal(value, before[key]) for key, value in adapters(one.model).items())


@pytest.mark.parametrize("role", ["policy", "critic"])
def test_a_bad_gradient_in_the_loop_stops_both_optimizers(role: str) -> None:
    """The critic's gradient is seen before the policy steps."""
    one = run("ppo", shared_changes={"minibatch_size": 8})
    before = adapters(one.model)
    name, parameter = next(iter(one.model.named_parameters_of(role).items()))
    parameter.requires_grad_(True).register_hook(lambda gradient: gradient * NAN)
    expected = rf"ppo, iteration 1, {role}, prompts p\d, p\d, p\d and 1 more: the gradient of {re.escape(name)} is not"
    with pytest.raises(UserError, match=expected):
        list(optimize(one))
    assert all(torch.equal(value, before[key]) for key, value in adapters(one.model).items())
