"""Adam, its moments in fp32 or in 8 bits."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import nn

from gemma_alignment.errors import UserError, brief

Kind = Literal["adam", "paged_adam_8bit"]


def adam(
    parameters: Sequence[nn.Parameter], rate: float, epsilon: float, kind: Kind, device: torch.device
) -> torch.optim.Optimizer:
    """Adam without weight decay over ``parameters``.

    In 8 bits the moments of tensors of at least 4,096 elements are block-wise quantised (Dettmers et al. 2022,
    arXiv:2110.02861), on a GPU in memory that the driver may page out to the host.

    Raises:
        UserError: when 8 bits are asked for and bitsandbytes cannot be used.
    """
    if kind == "adam":
        return torch.optim.Adam(parameters, lr=rate, eps=epsilon)
    try:
        return _adam_8bit(parameters, rate, epsilon, paged=device.type == "cuda")
    except (ImportError, RuntimeError, OSError) as error:
        raise UserError(
            f"modeling.optimizer is 'paged_adam_8bit', but bitsandbytes cannot be used here: {brief(error)}\n"
            "Install bitsandbytes for this machine, or run with --params modeling.optimizer=adam."
        ) from error


def _adam_8bit(parameters: Sequence[nn.Parameter], rate: float, epsilon: float, paged: bool) -> Any:
    from bitsandbytes.optim.adam import Adam8bit

    class Restorable(Adam8bit):
        """Takes its own state back from tensors alone, as a checkpoint holds it."""

        def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
            for state in state_dict["state"].values():
                state["step"] = int(state["step"])
            super().load_state_dict(state_dict, move_to_device)

    return Restorable(parameters, lr=rate, eps=epsilon, is_paged=paged)
