"""Decoding by the continuous batching of transformers 5: a cache of pages, and a row that ends makes room for another.

The engine schedules; what is drawn is ours. A token is a function of the logits and of the uniform number of its row
and step, so a response depends neither on the schedule nor on the engine's own random numbers, rounding aside.
"""

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import ContinuousBatchingConfig, GenerationConfig, LogitsProcessorList
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessor,
    ContinuousBatchingLogitsProcessorList,
)

from gemma_alignment.errors import UserError, brief
from gemma_alignment.modeling import heads
from gemma_alignment.modeling.memory import PAGE

Draw = Callable[[Tensor, Tensor], Tensor]
"""Logits (B, V) and uniform numbers (B,) to tokens (B,)."""
_CHILD = "__child#"


class _Drawn(ContinuousBatchingLogitsProcessor):
    """Leaves one token of each row, the one that is drawn at the uniform number of this row and step."""

    def __init__(self, prompts: Sequence[Sequence[int]], uniforms: Tensor, draw: Draw) -> None:
        self.supported_kwargs, self.ignored_kwargs = {}, ()
        self._uniforms, self._draw = uniforms, draw
        self._copies = len(uniforms) // len(prompts)
        self._before = [len(prompt) - 1 for prompt in prompts]

    def row(self, request: str) -> int:
        """The row of a request: the first sample of prompt 7 is ``7``, the others are its children."""
        prompt, _, child = request.partition(_CHILD)
        return int(prompt) * self._copies + (int(child) + 1 if child else 0)

    def fill_defaults(self, int32_tensor: Tensor) -> None:
        """Of rows that do not exist, with which a batch is filled up."""
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> Tensor:
        """The uniform numbers (B,), as the bits of integers. How far a row is, its place in the cache says."""
        numbers = [self._number(one.state) for one in requests_with_new_token]
        return torch.tensor(numbers, dtype=torch.float32).view(torch.int32)

    def _number(self, state: Any) -> float:
        if state.request_id.startswith("__warmup"):
            return 0.0
        row = self.row(state.request_id)
        return float(self._uniforms[row, state.position_offset - 1 - self._before[row // self._copies]])

    def __call__(self, scores: Tensor, tensor_arg: Tensor) -> Tensor:
        """Scores (B, V) of which all but one are −inf."""
        tokens = self._draw(scores, tensor_arg[: len(scores)].view(torch.float32))
        return torch.full_like(scores, -torch.inf).scatter(1, tokens[:, None], 0.0)


def generate(
    model: Any, prompts: Sequence[Sequence[int]], uniforms: Tensor, draw: Draw, stop_ids: Sequence[int], rows: int
) -> list[list[int]]:
    """A response for each row of ``uniforms`` (B, T), those of a prompt one after another.

    The pages of a prompt are computed once and copied for its other samples.

    Args:
        rows: responses decoded at a time; the cache has room for so many of the longest.

    Raises:
        UserError: where the engine does not take the model, with what it said.
    """
    drawn: Any = _Drawn(prompts, uniforms, draw)
    devices = [model.device] if model.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):  # the engine seeds the generators of the whole process
            manager = _manager(model, prompts, uniforms, stop_ids, rows)
            processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([drawn]))
            processors.tensors_required = 1
            manager.logit_processor = processors
            found = _served(manager, prompts, len(uniforms))
    except (ValueError, RuntimeError, NotImplementedError, AttributeError, TypeError, KeyError) as error:
        raise UserError(
            f"rollout.engine is 'continuous_batching', but it cannot decode a {type(model).__name__} on {model.device} "
            f"here: {brief(error)}\nRun with --params rollout.engine=transformers."
        ) from error
    responses: list[list[int]] = [[] for _ in range(len(uniforms))]
    for request, tokens in found.items():
        responses[drawn.row(request)] = tokens
    return responses


def _manager(
    model: Any, prompts: Sequence[Sequence[int]], uniforms: Tensor, stop_ids: Sequence[int], rows: int
) -> Any:
    steps, copies = uniforms.shape[1], len(uniforms) // len(prompts)
    rows = min(rows, len(uniforms))
    longest = max(len(prompt) for prompt in prompts) + steps
    config = model.config.get_text_config()
    wide = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return model.init_continuous_batching(
        generation_config=GenerationConfig(
            max_new_tokens=steps, do_sample=True, temperature=1.0, top_k=0, top_p=1.0, num_return_sequences=copies,
            eos_token_id=list(stop_ids), pad_token_id=0,
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            page_size=PAGE, num_blocks=rows * -(-longest // PAGE), max_requests_per_batch=rows, seed=0,
            max_batch_tokens=max(rows, longest, min(sum(map(len, prompts)), heads.WIDE // wide)),
            allow_block_sharing=False,  # weights change from one rollout to the next
            auto_switch_to_flash=model.dtype != torch.float32,
        ),
    )  # fmt: skip


def _served(manager: Any, prompts: Sequence[Sequence[int]], count: int) -> dict[str, list[int]]:
    """The tokens of every request. The engine runs in a thread of its own, which ends with this call."""
    library = logging.getLogger("ContinuousBatchingLogger")
    before = library.level
    library.setLevel(logging.CRITICAL)  # what goes wrong is said once, by the error
    manager.start()
    try:
        for number, prompt in enumerate(prompts):
            manager.add_request(list(prompt), request_id=str(number))
        found: dict[str, list[int]] = {}
        while len(found) < count:
            result = manager.get_result(timeout=1)
            if result is None and not manager.is_running():
                raise RuntimeError(manager.background_thread_status.fatal_error or "its thread ended")
            if result is not None and result.error is not None:
                raise RuntimeError(result.error)
            if result is not None and result.is_finished():
                found[result.request_id] = result.generated_tokens
        return found
    finally:
        manager.stop(block=True, hard_stop=True)
        manager.destroy()
        library.setLevel(before)
