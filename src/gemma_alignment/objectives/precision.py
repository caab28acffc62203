"""Numbers and their width: where half precision is too narrow, and what counts as a plain number."""

import torch
from jaxtyping import Shaped
from torch import Tensor

Number = float | int
"""A plain number; the union is spelled out because run-time type checkers take ``float`` literally."""


def at_least_float32(x: Shaped[Tensor, "*shape"]) -> Shaped[Tensor, "*shape"]:
    """``x`` in float32, or in float64 where it already is: sums and exponentials lose too much in bf16.

    Integers become float32 too, so that a buffer made like them cannot cut a score of 0.83 to 0.
    """
    return x if x.dtype == torch.float64 else x.to(torch.float32)
