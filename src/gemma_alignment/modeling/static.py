"""Decoding on a GPU: a cache of fixed size, and a step that is captured as a graph and replayed.

A step of decoding is hundreds of small kernels, and the host takes longer to start them than the GPU to run them; a
graph starts them at once. It is captured for a number of rows, so there are few of those: all rows, half of them, a
quarter. Fewer rows use the first rows of the same cache, which costs no memory, and the rows between are computed for
nothing. Any model whose layers all attend to everything goes through its own modules; others have no cache that a
graph could be captured over.
"""

import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from gemma_alignment.errors import brief
from gemma_alignment.modeling.prefill import prefilled

_LOG = logging.getLogger(__name__)
WORTH = 12
"""Steps that must be left for a graph to be captured: that takes about as long as three of them."""
Capture = Callable[[Callable[[], Tensor]], Callable[[], Tensor]]
"""From a step that computes logits into new memory to one that computes them again into the same."""


def captured(step: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The kernels of a step as a CUDA graph. Capturing waits for the device once, replaying does not.

    Raises:
        RuntimeError: where the step does what a graph cannot hold.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        logits = step()

    def replay() -> Tensor:
        graph.replay()
        return logits

    return replay


def sizes(rows: int) -> list[int]:
    """Numbers of rows that a step is captured for: all, then the half rounded up each time, down to one."""
    found = [rows]
    while found[-1] > 1:
        found.append(-(-found[-1] // 2))
    return found


def is_static(model: Any) -> bool:
    """Whether every layer of a model keeps all positions, so that its cache can have a fixed size."""
    from transformers import StaticCache
    from transformers.cache_utils import StaticLayer

    plain: Any = StaticLayer
    return all(type(layer) is plain for layer in StaticCache(config=model.config, max_cache_len=1).layers)


class StaticCached:
    """See the module's docstring, and ``Cached`` in ``decoding`` for what each method does."""

    def __init__(self, model: Any, capture: Capture = captured) -> None:
        self._model = model
        self._capture: Capture | None = capture
        self._steps: dict[int, Callable[[], Tensor]] = {}
        self._warm: set[int] = set()

    def prefill(self, tokens: Tensor, mask: Tensor, copies: int, steps: int) -> Tensor:
        """Logits (G · copies, V) after left-padded prompts (G, P), each computed once and copied; room for steps."""
        cache, logits = prefilled(self._model, tokens, mask)
        rows, self._length, self._end = len(tokens) * copies, tokens.shape[1], tokens.shape[1] + steps
        self._rows, self._sizes = rows, sizes(rows)
        self._keys = [self._room(layer.keys, copies, steps) for layer in cache.layers]
        self._values = [self._room(layer.values, copies, steps) for layer in cache.layers]
        self._written = torch.zeros(len(cache.layers), dtype=torch.long, device=logits.device)
        shut = torch.finfo(self._model.dtype).min
        self._bias = torch.full((rows, 1, 1, self._end), shut, dtype=self._model.dtype, device=logits.device)
        self._bias[..., : self._length].masked_fill_(mask.bool().repeat_interleave(copies, 0)[:, None, None], 0.0)
        self._positions = mask.sum(1).repeat_interleave(copies)[:, None].clone()
        self._tokens = torch.zeros((rows, 1), dtype=torch.long, device=logits.device)
        return logits.repeat_interleave(copies, 0)

    @staticmethod
    def _room(states: Tensor, copies: int, steps: int) -> Tensor:
        return torch.nn.functional.pad(states.repeat_interleave(copies, 0), (0, 0, 0, steps))

    def step(self, tokens: Tensor) -> Tensor:
        """Logits (B, V) after one more token (B,) of every row."""
        size = min(size for size in self._sizes if size >= self._rows)
        self._tokens[: self._rows, 0] = tokens
        self._bias[..., self._length] = 0.0
        self._written.fill_(self._length)
        logits = self._run(size)
        self._length += 1
        self._positions += 1
        return logits[: self._rows]

    def _run(self, size: int) -> Tensor:
        """The first step of a size as it is, which loads what it needs; the others replayed where that pays."""
        if size not in self._steps:
            self._steps[size] = self._stepping(size)
        elif size not in self._warm and self._capture is not None and self._end - self._length >= WORTH:
            self._warm.add(size)
            try:
                self._steps[size] = self._capture(self._steps[size])
            except (RuntimeError, NotImplementedError) as error:
                self._capture = None
                _LOG.warning("Decoding goes without a captured graph: %s", brief(error))
        return self._steps[size]()

    def _stepping(self, size: int) -> Callable[[], Tensor]:
        """A step over the first rows; everything that it reads and writes stays where it is."""
        cache = self._cache_of(size)

        def forward() -> Tensor:
            found = self._model(
                input_ids=self._tokens[:size], attention_mask=self._bias[:size], position_ids=self._positions[:size],
                past_key_values=cache, use_cache=True,
            )  # fmt: skip
            return torch.as_tensor(found.logits[:, -1])

        return forward

    def _cache_of(self, size: int) -> Any:
        from transformers import StaticCache

        cache = StaticCache(config=self._model.config, max_cache_len=self._end)
        layers: list[Any] = cache.layers
        for number, layer in enumerate(layers):
            layer.keys, layer.values = self._keys[number][:size], self._values[number][:size]
            layer.cumulative_length = self._written[number]
            layer.dtype, layer.device, layer.is_initialized = layer.keys.dtype, layer.keys.device, True
        return cache

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows alone, the first ones from now on."""
        self._rows = len(rows)
        for states in (*self._keys, *self._values, self._bias, self._positions):
            states[: self._rows] = states[rows]
