"""A frozen base in shares: each process of a run holds a part of every layer, and all of it only while it computes.

PyTorch's FSDP2 cuts the weights, gathers a layer's before it computes, forward or backward, and frees them after. A
gathering takes all processes, but each samples other prompts and passes other rows, so they do not compute the same
layers equally often. Hence before each gathering every process says which piece it needs, and the lowest number is
gathered by all; who needed another one asks again. A process that has come to a sum over processes goes on lending its
shares until all have come there (:func:`gemma_alignment.modeling.ranks.meanwhile`). Pieces are numbered in the order
in which a forward needs them, so those who are behind catch up, and from there on all need the same.

Adapters, heads of roles and the last norm are whole in every process. Nothing of the base learns, so nothing of it is
summed.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, distributed, nn

from gemma_alignment.errors import UserError
from gemma_alignment.modeling import ranks

_LOG = logging.getLogger(__name__)
NONE = 2**31
"""Said by a process that needs no piece: higher than any number."""


def share_out(model: Any, device: torch.device) -> None:
    """Cut a base that every process has into shares, in place; this process's lies on ``device``.

    Raises:
        UserError: for one process, and for a model that does not say which of its modules are layers.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if ranks.count() == 1:
        raise UserError("modeling.sharding is 'base', but one process trains the policy: there is nobody to share with")
    mesh, before = init_device_mesh(device.type, (ranks.count(),)), held(model)
    pieces = [fully_shard(one, mesh=mesh, reshard_after_forward=True) for one in _pieces(model)]
    shares = _Shares(pieces)
    for number, piece in enumerate(pieces):
        piece.set_custom_all_gather(cast(Any, _Gathering(shares, number)))
        with whole(piece):  # first made in inference mode, its tensors could not be filled outside of it
            pass
    model.to(device)
    ranks.meanwhile(shares.lend)
    _LOG.info("Each process holds %.1f of the %.1f MB of the base", held(model) / 1e6, before / 1e6)


class _Shares:
    """This process's shares of the pieces of a base."""

    def __init__(self, pieces: Sequence[Any]) -> None:
        self._pieces = pieces
        self._is_lending = False

    def lend(self, needed: int = NONE) -> None:
        """Help to gather what others need, until ``needed`` is next; without it, until no process needs any."""
        if self._is_lending:
            return
        self._is_lending = True
        try:
            while (number := ranks.lowest(needed)) != needed:
                with whole(self._pieces[number]):
                    pass
        finally:
            self._is_lending = False


class _Gathering:
    """How FSDP2 gathers one piece: when it is its turn."""

    def __init__(self, shares: _Shares, number: int) -> None:
        self._shares, self._number = shares, number

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False) -> Any:
        self._shares.lend(self._number)
        return distributed.all_gather_single(output_tensor, input_tensor, group=group, async_op=async_op)


def _pieces(model: Any) -> list[Any]:
    """The modules that are gathered one at a time, in the order of a forward but for a head that is no embedding.

    A head that is tied to the embedding becomes one that reads it there: FSDP2 would gather the two together.
    """
    table, head = model.get_input_embeddings(), model.get_output_embeddings()
    names = set(model._no_split_modules or ())
    layers = [module for module in model.modules() if type(module).__name__ in names]
    if not layers:
        raise UserError(
            f"modeling.sharding is 'base', but {type(model).__name__} does not say which of its modules are layers: "
            "use modeling.sharding=none"
        )
    if head.weight is not table.weight:
        return [table, head, *layers]
    model.set_output_embeddings(TiedHead(table))
    return [table, *layers]


def is_shared_out(model: Any) -> bool:
    """Whether this process holds shares of a model alone."""
    return hasattr(model.get_input_embeddings(), "unshard")


def held(model: Any) -> int:
    """Bytes of the parameters that this process holds between two forwards."""
    parts = [p.to_local() if hasattr(p, "to_local") else p for p in model.parameters()]
    return sum(part.numel() * part.element_size() for part in parts)


@contextmanager
def whole(piece: Any) -> Iterator[None]:
    """All weights of a piece inside the block."""
    piece.unshard()
    try:
        yield
    finally:
        piece.reshard()


class TiedHead(nn.Module):
    """The logits of an embedding of which this process holds a share."""

    def __init__(self, table: Any) -> None:
        super().__init__()
        self.table = table
        self.out_features, self.in_features = table.weight.shape

    def forward(self, hidden: Tensor) -> Tensor:
        """(…, d) -> (…, V)."""
        return cast(Tensor, _Logits.apply(hidden, self.table))


class _Logits(torch.autograd.Function):
    """hidden · Wᵀ; the backward gathers W anew."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, table: Any) -> Tensor:
        ctx.table = table
        with whole(table):
            return hidden @ cast(Tensor, table.weight).T

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        with whole(ctx.table):
            return gradients[0] @ ctx.table.weight, None
