"""Several processes that train one policy: the gradients, responses and history of one, and the same weights in all."""

import math
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import leave, metrics, read, together
from test_policy_optimization import adapters, run
from toy import PROMPTS, chat

from gemma_alignment.errors import UserError
from gemma_alignment.modeling import ranks
from gemma_alignment.training import policy_optimization
from gemma_alignment.training.policy_evaluation import HeldOut

EXACT = ("rollout/response_length", "rollout/eos_rate", "budget/tokens_generated", "budget/responses", "policy/kl_coef")


def one_of_several(rank: int, count: int, folder: Path, method: str, start: dict[str, Any] | None = None) -> None:
    toy = with_held_out(method)
    leave(rank, folder, toy, lambda: adapters(toy.model), start)


def with_held_out(method: str) -> policy_optimization.Run:
    """The toy run with as many held-out prompts as there are training prompts."""
    one = run(method, shared_changes={"responses_per_iteration": 16, "minibatch_size": 8, "microbatch_size": 4})
    texts = [(f"p{i}", text) for i, text in enumerate(PROMPTS)]
    chosen = [(chat().encode_prompt(text), chat().encode_response("apple and pear")) for _, text in texts]
    return replace(one, held_out=HeldOut(texts, chosen))


@cache
def from_the_start(method: str, count: int) -> Path:
    """The folder that so many processes leave."""
    return together(count, one_of_several, method)


def assert_like(found: list[dict[str, float]], wanted: list[dict[str, float]]) -> None:
    """Equal up to rounding; what counts responses and tokens exactly. How much was computed is another thing."""
    assert len(found) == len(wanted)
    for several, one in zip(found, wanted, strict=True):
        assert several.keys() == one.keys()
        for key in one.keys() - {"budget/flops", "rollout/sampler_gap"}:
            tolerance = 0.0 if key in EXACT else 2e-4
            assert math.isclose(several[key], one[key], rel_tol=tolerance, abs_tol=tolerance), key


@pytest.mark.parametrize(("method", "count"), [("grpo", 2), ("ppo", 2), ("grpo", 3)])
def test_the_gradients_of_several_processes_are_those_of_one(method: str, count: int) -> None:
    one, several = from_the_start(method, 1), from_the_start(method, count)
    wanted, found = read(one, "gradients.pt"), read(several, "gradients.pt")
    assert found.keys() == wanted.keys()
    assert sum(float(gradient.abs().sum()) for gradient in wanted.values()) > 0
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6, msg=name)


@pytest.mark.parametrize(("method", "count"), [("grpo", 2), ("ppo", 2), ("grpo", 3)])
def test_their_history_is_that_of_one_and_their_weights_are_the_same(method: str, count: int) -> None:
    one, several = from_the_start(method, 1), from_the_start(method, count)
    assert_like(metrics(several), metrics(one))
    first, *others = (read(several, f"weights-{rank}.pt") for rank in range(count))
    for other in others:
        for name, tensor in first.items():
            assert torch.equal(other[name], tensor), name
    flops = [folder[-1]["budget/flops"] for folder in (metrics(one), metrics(several))]
    assert 0.9 < flops[1] / flops[0] < 1.5  # all of it, counted once


@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (2, 3)])
def test_a_checkpoint_is_gone_on_from_by_another_number_of_processes(before: int, after: int) -> None:
    state = read(from_the_start("grpo", before), "states.pt")[1]
    assert state["iteration"] == 1
    wanted = metrics(from_the_start("grpo", 1))
    went_on = metrics(together(after, one_of_several, "grpo", state))
    assert_like(went_on, wanted[2:])
    flops = went_on[-1]["budget/flops"] / wanted[-1]["budget/flops"]
    assert 0.9 < flops < 1.5


def test_as_many_processes_leave_the_same_bytes() -> None:
    first, again = from_the_start("grpo", 2), together(2, one_of_several, "grpo")
    assert (first / "metrics.json").read_bytes() == (again / "metrics.json").read_bytes()


def test_a_process_that_is_alone_does_everything() -> None:
    assert (ranks.count(), ranks.number()) == (1, 0)
    assert ranks.mine([1, 2, 3]) == [1, 2, 3] and ranks.mine([]) == []
    assert ranks.at_most(4, 3) == 4
    assert ranks.total({"a": 0.1}) == {"a": 0.1}


@pytest.mark.parametrize("rows", [4, 5, 7, 12, 13])
@pytest.mark.parametrize("size", [1, 3, 5, 12])
@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_row_is_done_once_and_no_process_is_idle(
    monkeypatch: pytest.MonkeyPatch, rows: int, size: int, count: int
) -> None:
    monkeypatch.setattr(ranks, "count", lambda: count)
    done: list[int] = []
    for rank in range(count):
        monkeypatch.setattr(ranks, "number", lambda rank=rank: rank)
        part = ranks.at_most(size, rows)
        assert 1 <= part <= size
        starts = ranks.mine(range(0, rows, part))
        assert len(starts) >= 1
        done += [row for start in starts for row in range(start, min(start + part, rows))]
    assert sorted(done) == list(range(rows))


def test_fewer_rows_than_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "count", lambda: 3)
    with pytest.raises(UserError, match="3 processes cannot share 2 rows"):
        ranks.mine([1, 2])
