"""Processes that a launcher starts: the first one says what is trained, the others do it too and leave with it."""

import json
import multiprocessing
import os
import socket

import pytest

from gemma_alignment.errors import NothingToDo
from gemma_alignment.modeling import ranks
from gemma_alignment.pipelines import several
from gemma_alignment.training.checkpoints import Checkpoint

FORK = multiprocessing.get_context("fork")


class Store:
    """Checkpoints of the first process."""

    def __init__(self, found=None):
        self.found, self.kept = found, []

    def begin(self):
        return self.found

    def save(self, checkpoint, kept):
        self.kept.append(checkpoint)


def noted(folder):
    """A node that writes down who was asked to train what, from where; and adds up who there is."""

    def train(method, rows, settings, run_log, checkpoints):
        import torch

        start = checkpoints.begin()
        there = int(ranks.whole(torch.ones(1)))
        begun = start and [start.state.iteration, start.state.numbers["budget"]["flops"]]
        line = [method, list(rows), settings, begun, there]
        with (folder / str(ranks.number())).open("a") as file:
            file.write(json.dumps(line) + "\n")
        checkpoints.save(start, 1)
        return method

    return train


def counting(folder):
    """A node that answers: who there is, by number."""

    def answer(prompts, modeling):
        with (folder / f"answered-{ranks.number()}").open("a") as file:
            file.write("".join(ranks.mine(prompts)))
        return ranks.count()

    return answer


def as_launched(rank, count, port, folder, work):
    os.environ |= {
        "RANK": str(rank), "WORLD_SIZE": str(count), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }  # fmt: skip
    assert several.is_launched() and several.is_another() == (rank > 0)
    train, answer = noted(folder), counting(folder)
    if rank > 0:
        os._exit(several.follow(train, answer))
    with several.first():
        work(several.shared_out(train), several.shared_out_in_shares(answer))


def launched(count, folder, work):
    """The exit statuses of so many processes of which the first does ``work`` with the node."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = [FORK.Process(target=as_launched, args=(rank, count, port, folder, work)) for rank in range(count)]
    for one in processes:
        one.start()
    for one in processes:
        one.join(120)
    for one in processes:
        one.kill()
    return [one.exitcode for one in processes]


def test_every_process_trains_what_the_first_one_says_one_after_the_other(tmp_path):
    import torch

    from gemma_alignment.schemas import TrainingState

    state = TrainingState(7, {"policy": {"a": torch.ones(2)}}, {"budget": {"flops": 3.0}})

    def work(node, answer):
        kept = Store(Checkpoint(state, {}))
        assert node("ppo", ({"prompt": "p"},), {"rate": 0.1}, None, Store()) == "ppo"
        assert node("grpo", range(2), {}, None, kept) == "grpo"
        assert [one.state.iteration for one in kept.kept] == [7]  # the first one alone keeps any
        assert answer("abc", {"sharding": "none"}) == 1  # by itself: the others wait for work
        assert answer("def", {"sharding": "base"}) == 3
        assert ranks.count() == 1

    assert launched(3, tmp_path, work) == [0, 0, 0]
    said = [[json.loads(line) for line in (tmp_path / str(rank)).read_text().splitlines()] for rank in range(3)]
    first = ["ppo", [{"prompt": "p"}], {"rate": 0.1}, None, 3]
    assert said[1] == said[2] == [first, ["grpo", [0, 1], {}, [7, 0.0], 3]]
    answered = [(tmp_path / f"answered-{rank}").read_text() for rank in range(3)]
    assert answered == ["abcd", "e", "f"]
    assert said[0][0] == first and said[0][1][3] == [7, 3.0]  # what was counted before is counted once


@pytest.mark.parametrize("error", [NothingToDo("it is there"), ValueError("refused")])
def test_where_there_is_nothing_to_train_the_others_leave(tmp_path, error):
    def work(node, answer):
        raise error

    assert launched(2, tmp_path, work) == [1, 0]


def test_where_training_fails_in_the_first_the_others_end_too(tmp_path):
    def work(node, answer):
        class Broken(Store):
            def save(self, checkpoint, kept):
                raise OSError("the disk is full")

        node("ppo", (), {}, None, Broken())

    first, other = launched(2, tmp_path, work)
    assert first == 1 and other != 0
