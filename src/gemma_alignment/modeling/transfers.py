"""Copies between the host and a GPU that nobody waits for; on a CPU there is nothing to copy.

A copy to the GPU starts from pinned memory and is queued like a kernel. A copy back lands in pinned memory while the
host goes on, and is looked at some steps later.
"""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

LAG = 4
"""Steps of decoding that a GPU is given ahead of what the host knows of their outcome."""


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """The same on a device, queued behind what runs there."""
    if device.type != "cuda" or x.device.type != "cpu":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def to_host(x: Tensor) -> Callable[[], list[bool]]:
    """Start copying a mask (B,) to the host; the result, called, has it as a list."""
    if x.device.type != "cuda":
        return x.clone().tolist
    pinned = torch.empty(x.shape, dtype=x.dtype, pin_memory=True)
    pinned.copy_(x, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> list[bool]:
        copied.synchronize()
        found: list[bool] = pinned.tolist()
        return found

    return read


class Known:
    """What the host knows of a mask that only ever gains: all of it on a CPU, what it was ``LAG`` steps ago on a GPU.

    An old answer is a safe one for rows that end and do not come back. The host waits for a step that is ``LAG``
    behind, never for the one it has just queued.
    """

    def __init__(self, lag: int) -> None:
        self._lag = lag
        self._sent: deque[Callable[[], list[bool]]] = deque()

    @classmethod
    def on(cls, device: torch.device) -> "Known":
        """As late as the device asks for."""
        return cls(LAG if device.type == "cuda" else 0)

    def tell(self, mask: Tensor) -> list[bool] | None:
        """The mask as it is or was; None while no answer is old enough."""
        self._sent.append(to_host(mask))
        return self._sent.popleft()() if len(self._sent) > self._lag else None

    def forget(self) -> None:
        """Answers on the way are of rows that stood elsewhere."""
        self._sent.clear()
