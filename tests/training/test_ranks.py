"""Several processes that train one policy: the gradients, responses and history of one, and the same weights in all."""

import json
import math
import multiprocessing
import socket
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from test_policy_optimization import adapters, run
from torch import distributed
from toy import PROMPTS, chat

from gemma_alignment.errors import UserError
from gemma_alignment.modeling import ranks
from gemma_alignment.schemas import TrainingState
from gemma_alignment.training import policy_optimization
from gemma_alignment.training.policy_evaluation import HeldOut

EXACT = ("rollout/response_length", "rollout/eos_rate", "budget/tokens_generated", "budget/responses", "policy/kl_coef")
FORK = multiprocessing.get_context("fork")


def one_of_several(rank: int, count: int, port: int, method: str, folder: Path, start: dict[str, Any] | None) -> None:
    """Train the toy policy; leaves what the first process found, and of every process the weights at the end."""
    torch.set_num_threads(1)
    if count > 1:
        distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=count)
    gradients: list[dict[str, torch.Tensor]] = []
    step = policy_optimization.clipped

    def clipped(parameters: Any, *words: Any) -> float:
        gradients.append({name: parameter.grad.clone() for name, parameter in parameters.items()})
        return step(parameters, *words)

    policy_optimization.clipped = clipped  # type: ignore[assignment]
    if start is not None and rank > 0:
        start["numbers"]["budget"]["flops"] = 0.0  # as another process hears it
    records = list(policy_optimization.optimize(toy := with_held_out(method), start and TrainingState(**start)))
    torch.save(adapters(toy.model), folder / f"weights-{rank}.pt")
    if rank == 0:
        (folder / "metrics.json").write_text(json.dumps([record.metrics for record in records]))
        torch.save(gradients[0], folder / "gradients.pt")
        torch.save([vars(record.state) for record in records], folder / "states.pt")
    if count > 1:
        distributed.destroy_process_group()


def with_held_out(method: str) -> policy_optimization.Run:
    """The toy run with as many held-out prompts as there are training prompts."""
    one = run(method, shared_changes={"responses_per_iteration": 16, "minibatch_size": 8, "microbatch_size": 4})
    texts = [(f"p{i}", text) for i, text in enumerate(PROMPTS)]
    chosen = [(chat().encode_prompt(text), chat().encode_response("apple and pear")) for _, text in texts]
    return replace(one, held_out=HeldOut(texts, chosen))


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def trained(method: str, count: int, start: dict[str, Any] | None = None) -> Path:
    """The folder that so many processes leave."""
    folder, port = Path(mkdtemp(prefix="ranks-")), free_port()
    workers = [
        FORK.Process(target=one_of_several, args=(rank, count, port, method, folder, start), daemon=True)
        for rank in range(count)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(240)
    assert [worker.exitcode for worker in workers] == [0] * count
    return folder


from_the_start = cache(trained)


def read(folder: Path, name: str) -> Any:
    return torch.load(folder / name, weights_only=True)


def metrics(folder: Path) -> list[dict[str, float]]:
    return json.loads((folder / "metrics.json").read_text())


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
    went_on = metrics(trained("grpo", after, state))
    assert_like(went_on, wanted[2:])
    flops = went_on[-1]["budget/flops"] / wanted[-1]["budget/flops"]
    assert 0.9 < flops < 1.5


def test_as_many_processes_leave_the_same_bytes() -> None:
    first, again = from_the_start("grpo", 2), trained("grpo", 2)
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
