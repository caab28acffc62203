"""Several processes that train one policy: each computes its part of the rows, and the parts become whole.

Data parallelism without a library of models: the processes are those of ``torch.distributed``'s default group, which
``accelerate launch`` and ``torchrun`` describe by the same variables. Every process has the same weights, rows and
random numbers, and holds all results of all rows before anything is decided from them: credit, statistics, learning
rates and optimizer steps are computed by each alike. A process that is alone does everything itself, as ever.

Sums over processes add parts in another order than one process does, so results agree up to rounding, and are the
same bytes each time that as many processes compute them.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed

from gemma_alignment.errors import UserError

Part = TypeVar("Part")


@dataclass
class _Company:
    """What this process and the others of its group are to each other."""

    is_left: bool = False
    """Whether this one is by itself, though the group lives on."""
    meanwhile: list[Callable[[], None]] = field(default_factory=list)
    """What it does where it waits for the others."""


_company = _Company()


@contextmanager
def together(is_left: bool = False) -> Iterator[None]:
    """What all processes of a group do alike; ``is_left``: and after which this one is by itself."""
    _company.is_left = False
    try:
        yield
    finally:
        _company.is_left = is_left
        _company.meanwhile.clear()


def count() -> int:
    """How many processes there are that do the same."""
    if _company.is_left or not (distributed.is_available() and distributed.is_initialized()):
        return 1
    return distributed.get_world_size()


def number() -> int:
    """Which one this is, from 0."""
    return distributed.get_rank() if count() > 1 else 0


def mine(parts: Sequence[Part]) -> Sequence[Part]:
    """This process's share of what is to be done: every ``count()``-th part, so that parts in order of length balance.

    Raises:
        UserError: when some process would have none.
    """
    if 1 < count() > len(parts):
        raise UserError(
            f"{count()} processes cannot share {len(parts)} rows: every one needs at least one of each minibatch and "
            "of the held-out prompts. Use fewer processes for a run, or more rows"
        )
    return parts[number() :: count()]


def at_most(size: int, rows: int) -> int:
    """The largest part of ``rows`` that is at most ``size`` and leaves one for each process."""
    return size if count() == 1 or -(-rows // size) >= count() else max(1, rows // count())


def whole(part: Tensor) -> Tensor:
    """The sum over processes, in place: of a tensor with 0 where other processes have their rows."""
    if count() > 1:
        _arrive()
        distributed.all_reduce(part)
    return part


def lowest(number: int) -> int:
    """The least of the numbers that the processes say."""
    said = torch.tensor(number)
    distributed.all_reduce(said, distributed.ReduceOp.MIN)
    return int(said)


def meanwhile(serve: Callable[[], None]) -> None:
    """From now on, as long as they are together, a process that comes to a sum serves the others until all have come.

    ``serve`` returns in all processes at the same time: when none needs it any more.
    """
    _company.meanwhile.append(serve)


def _arrive() -> None:
    for serve in _company.meanwhile:
        serve()


def total(numbers: Mapping[str, float]) -> dict[str, float]:
    """The sum of each over processes, which all have the same keys."""
    if count() == 1:
        return dict(numbers)
    names = sorted(numbers)
    sums = whole(torch.tensor([numbers[name] for name in names], dtype=torch.float64)).tolist()
    return dict(zip(names, sums, strict=True))


def add_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Let every process have the sum of all gradients, as if it had seen all rows itself.

    A tensor without one is left to the step to refuse: every process lacks the same.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if count() == 1 or not gradients:
        return
    flat = whole(torch.cat([gradient.reshape(-1) for gradient in gradients]))
    for gradient, summed in zip(gradients, flat.split([one.numel() for one in gradients]), strict=True):
        gradient.copy_(summed.view_as(gradient))


def tell(message: Any, **tensors: Mapping[str, Tensor]) -> None:
    """From the first process to the others: a value of JSON and named groups of tensors. Nothing is pickled."""
    from safetensors.torch import save

    for content in (json.dumps([message, list(tensors)]).encode(), *(save(dict(each)) for each in tensors.values())):
        _broadcast(torch.tensor([len(content)]))
        _broadcast(torch.frombuffer(bytearray(content), dtype=torch.uint8))


def hear() -> tuple[Any, dict[str, dict[str, Tensor]]]:
    """What the first process tells."""
    from safetensors.torch import load

    message, names = json.loads(_heard())
    return message, {name: load(_heard()) for name in names}


def _heard() -> bytes:
    size = _broadcast(torch.zeros(1, dtype=torch.long))
    return _broadcast(torch.zeros(int(size), dtype=torch.uint8)).numpy().tobytes()


def _broadcast(tensor: Tensor) -> Tensor:
    _arrive()
    distributed.broadcast(tensor, 0)
    return tensor
