"""States that are copies, and the keeper that has the last good one on disk whatever ends the training."""

import logging
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from test_policy_optimization import run

from gemma_alignment.errors import UserError
from gemma_alignment.schemas import Mark, TrainingState, UpdateRecord
from gemma_alignment.training.checkpoints import Checkpoint, Keeper, with_time_of
from gemma_alignment.training.policy_optimization import optimize


class Notes:
    """A store and a log that write down what they are asked to do."""

    def __init__(self) -> None:
        self.done: list[str] = []
        self.failure: Exception | None = None

    def append(self, record: UpdateRecord) -> None:
        self.done.append(f"append {record.iteration}")

    def position(self) -> dict[str, Mark]:
        return {"history": Mark(len(self.done), "")}

    def sync(self) -> None:
        self.done.append("sync")

    def save(self, checkpoint: Checkpoint, kept: int) -> None:
        if self.failure is not None:
            raise self.failure
        self.done.append(f"save {checkpoint.state.iteration} at {checkpoint.position['history'].bytes}, keep {kept}")


def record(iteration: int) -> UpdateRecord:
    return UpdateRecord(iteration, {}, {}, (), TrainingState(iteration, {}, {}))


def test_lines_are_on_the_disk_before_the_checkpoint_that_counts_them() -> None:
    notes = Notes()
    with Keeper(notes, notes, every=2, kept=3) as keeper:
        for iteration in range(4):
            keeper.take(record(iteration))
    assert notes.done == [
        "append 0", "sync", "save 0 at 1, keep 3", "append 1", "append 2", "sync", "save 2 at 5, keep 3",
        "append 3", "sync", "save 3 at 8, keep 3",
    ]  # fmt: skip


@pytest.mark.parametrize("error", [UserError("not finite"), KeyboardInterrupt(), MemoryError()])
def test_any_error_saves_the_state_of_the_last_record(error: BaseException) -> None:
    notes = Notes()
    with pytest.raises(type(error)), Keeper(notes, notes, every=10, kept=1) as keeper:
        for iteration in range(4):
            keeper.take(record(iteration))
        raise error
    assert notes.done[-2:] == ["sync", "save 3 at 6, keep 1"]


def test_a_record_that_is_cut_off_while_it_is_logged_does_not_count() -> None:
    class Stopped(Notes):
        def append(self, record: UpdateRecord) -> None:
            super().append(record)
            if record.iteration == 2:
                raise KeyboardInterrupt

    notes = Stopped()
    with pytest.raises(KeyboardInterrupt), Keeper(notes, notes, every=10, kept=1) as keeper:
        for iteration in range(4):
            keeper.take(record(iteration))
    assert notes.done[-1].startswith("save 1 at ")


def test_what_is_on_disk_is_not_saved_again() -> None:
    notes = Notes()
    with pytest.raises(UserError), Keeper(notes, notes, every=1, kept=1) as keeper:
        keeper.take(record(0))
        raise UserError("not finite")
    assert [line for line in notes.done if line.startswith("save")] == ["save 0 at 1, keep 1"]


def test_a_save_that_fails_too_does_not_hide_the_error(caplog: pytest.LogCaptureFixture) -> None:
    notes = Notes()
    with caplog.at_level(logging.WARNING), pytest.raises(UserError, match="not finite"):
        with Keeper(notes, notes, every=10, kept=1) as keeper:
            keeper.take(record(0))
            keeper.take(record(1))
            notes.failure = UserError("no space left")
            raise UserError("not finite")
    assert "no space left" in caplog.text


def test_a_save_that_fails_at_the_end_is_an_error() -> None:
    notes = Notes()
    with pytest.raises(UserError, match="no space left"), Keeper(notes, notes, every=10, kept=1) as keeper:
        keeper.take(record(0))
        keeper.take(record(1))
        notes.failure = UserError("no space left")


def test_a_state_stays_what_it_is_while_the_training_goes_on() -> None:
    states = [one.state for one in optimize(run("ppo"))]
    first = next(iter(run("ppo").model.named_parameters_of("policy")))
    weights = [state.tensors["policy"][first] for state in states if state is not None]
    assert len(weights) == 4
    assert not any(torch.equal(a, b) for a, b in pairwise(weights))
    assert set(states[1].tensors) == {"policy", "policy_optimizer", "critic", "critic_optimizer"}  # type: ignore[union-attr]
    assert "head.weight" in states[1].tensors["critic"]  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["rloo", "dr_grpo"])
def test_every_method_goes_on_to_the_same_records(name: str) -> None:
    """PPO and GRPO are compared byte for byte, through files, in tests/pipelines/test_resume.py."""
    whole = list(optimize(run(name)))
    rest = list(optimize(run(name), whole[1].state))
    assert [(one.iteration, one.metrics) for one in rest] == [(one.iteration, one.metrics) for one in whole[2:]]


def test_the_controller_and_the_normaliser_go_on_where_they_were() -> None:
    whole = list(optimize(run("grpo")))
    other = run("grpo")
    assert next(optimize(other, whole[1].state)).metrics["policy/kl_coef"] == whole[2].metrics["policy/kl_coef"]
    numbers = whole[1].state.numbers  # type: ignore[union-attr]
    assert numbers["score_normalizer"] != {"mean": 0.0, "variance": 1.0}
    assert numbers["kl_controller"].keys() == {"phase", "coef"}


@pytest.mark.parametrize("agrees", [True, False])
def test_states_go_on_being_computed_the_way_they_were(agrees: bool) -> None:
    """The two ways differ by rounding, and the first batch of a run that goes on is another one."""
    one, other = run("grpo"), run("grpo")
    one.model.packing.agrees = agrees
    whole = list(optimize(one))
    other.model.packing.agrees = not agrees
    rest = list(optimize(other, whole[1].state))
    assert whole[1].state.numbers["packing"] == {"agrees": agrees}  # type: ignore[union-attr]
    assert other.model.packing.agrees is agrees
    assert [record.metrics for record in rest] == [record.metrics for record in whole[2:]]


def test_a_state_of_another_model_is_refused() -> None:
    state: Any = list(optimize(run("grpo")))[1].state
    policy = {name: value for i, (name, value) in enumerate(state.tensors["policy"].items()) if i}
    with pytest.raises(UserError, match="The checkpoint's policy has other tensors than this model's"):
        next(optimize(run("grpo"), replace(state, tensors={**state.tensors, "policy": policy})))


def test_time_that_was_spent_on_lost_iterations_counts() -> None:
    budget = {"responses": 8, "tokens": 40, "seconds": 5.0}
    state = TrainingState(2, {}, {"budget": budget, "kl_controller": {"coef": 0.1}})
    rows = [{"iteration": 0}, {"iteration": 2, "budget/seconds": 5.0}, {"iteration": 3, "budget/seconds": 7.5}]
    assert with_time_of(state, rows).numbers == {**state.numbers, "budget": {**budget, "seconds": 7.5}}
    assert with_time_of(state, []).numbers == state.numbers
