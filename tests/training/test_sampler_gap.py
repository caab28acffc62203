"""The sampler is compared with the training forward all through a run, and a run that goes on decides the same."""

import logging
from collections.abc import Collection
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_policy_optimization import adapters, run

from gemma_alignment.rollout import experience
from gemma_alignment.rollout.experience import AGREEMENT
from gemma_alignment.training import policy_optimization
from gemma_alignment.training.policy_optimization import Run, optimize

LONG = {"num_iterations": 6, "eval_every": 2, "minibatch_size": 8}


def drifting(monkeypatch: pytest.MonkeyPatch, off: Collection[int], by: float = 1.5 * AGREEMENT) -> None:
    """Let one token's log-probability of the sampler be wrong in these iterations; nothing is evaluated."""
    real, seen = experience.rollout, []

    def moved(*args: Any) -> Any:
        found = real(*args)
        seen.append(1)
        logprobs = found.logprobs.clone()
        logprobs[1, 0] += by * (len(seen) in off)
        return replace(found, logprobs=logprobs)

    monkeypatch.setattr(experience, "rollout", moved)
    monkeypatch.setattr(policy_optimization, "_evaluation", lambda run, iteration: ({}, []))


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == experience.__name__]


def one_run() -> Run:
    return run("grpo", shared_changes=LONG)


def gaps(one: Run) -> dict[int, float | None]:
    return {r.iteration: r.metrics.get("rollout/sampler_gap") for r in optimize(one) if r.iteration}


def test_it_is_asked_at_the_first_iteration_and_wherever_the_policy_is_evaluated(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    drifting(monkeypatch, {5, 6}, by=0.5 * AGREEMENT)
    with caplog.at_level(logging.WARNING):
        found = gaps(one_run())
    assert [i for i, gap in found.items() if gap is not None] == [1, 2, 4, 6]
    gap = found.pop(6)
    assert gap == pytest.approx(0.5 * AGREEMENT, rel=0.05), "of that iteration's responses"
    assert all(gap < 0.1 * AGREEMENT for gap in found.values() if gap is not None)
    assert not warnings(caplog)


def test_asking_changes_no_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = []
    for every in (2, 6):
        one = run("grpo", shared_changes={**LONG, "eval_every": every})
        list(optimize(one))
        ends.append(adapters(one.model))
    assert all(torch.equal(value, ends[1][key]) for key, value in ends[0].items())


@pytest.mark.parametrize("off", [{3, 4}, {4}])
def test_a_sampler_that_drifts_off_is_given_up_where_it_is_asked_next(
    off: set[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In iteration 3 nobody asks, and one token of so many is within what the first ratio allows."""
    drifting(monkeypatch, off)
    with caplog.at_level(logging.WARNING):
        found = gaps(one_run())
    assert [i for i, gap in found.items() if gap is not None] == [1, 2, 4, 5, 6]
    assert [gap > AGREEMENT for gap in found.values() if gap is not None] == [False, False, True, False, False]
    assert len(warnings(caplog)) == 1


@pytest.mark.parametrize("done", [3, 4, 5])
def test_a_run_that_goes_on_takes_its_old_log_probabilities_from_where_the_first_one_did(
    done: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    drifting(monkeypatch, {4})
    whole, states = [], []
    for record in optimize(one_run()):
        whole.append(record.metrics)
        states.append(record.state)
    monkeypatch.undo()
    drifting(monkeypatch, {4 - done})
    rest = [record.metrics for record in optimize(one_run(), states[done])]
    assert rest == whole[done + 1 :]


@pytest.mark.parametrize("method", ["grpo", "ppo"])
def test_operations_are_those_of_training_however_often_it_is_evaluated(method: str) -> None:
    """Neither held-out evaluation nor the comparison of the sampler is work that a budget pays for."""
    ends = []
    for every in (1, 6):
        records = list(optimize(run(method, shared_changes={**LONG, "eval_every": every})))
        ends.append([record.metrics["budget/flops"] for record in records if record.iteration])
    assert ends[0] == ends[1]
    assert 0.0 < ends[0][0] < ends[0][-1]
