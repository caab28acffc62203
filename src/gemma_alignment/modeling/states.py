"""Final hidden states of prompts and responses: packed into few rows where a model takes them so, padded otherwise."""

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gemma_alignment.errors import brief, let_through
from gemma_alignment.modeling.gemma import gemma_states, is_plain
from gemma_alignment.modeling.packing import masks_for, pack
from gemma_alignment.modeling.sequences import HasSequences, once, sequences
from gemma_alignment.modeling.transfers import to_device

_LOG = logging.getLogger(__name__)
GAP = {True: 1e-4, False: 0.05}
"""Largest difference of a state, packed against padded, relative to the largest state: by whether numbers are exact."""


class Packing:
    """Which way a model's states are computed: asked once, of a crowded row and of its first batch, both ways.

    The answer is part of a checkpoint: a run that goes on has another first batch and other weights, and the two
    ways differ by rounding.
    """

    def __init__(self) -> None:
        self.agrees: bool | None = None
        """Whether packed states are the padded ones; None before the first batch."""

    def states(self, model: Any, batch: HasSequences, wanted: Tensor, exact: bool) -> tuple[Tensor, int]:
        """The states (n, d) that ``wanted`` (B, T + 1) marks, row by row; and the positions computed.

        Column t is the state read before response token t, T that after the last. ``exact``: whether the model
        computes in fp32 and nothing is quantised.
        """
        if self.agrees is None:
            self.agrees = _agrees(model, batch, GAP[exact])
        return (packed_states if self.agrees else padded_states)(model, batch, wanted)

    def state_dict(self) -> dict[str, bool]:
        """What a checkpoint keeps: nothing before the first batch."""
        return {} if self.agrees is None else {"agrees": self.agrees}

    def load_state_dict(self, state: Mapping[str, int | float]) -> None:
        """Go on from where ``state_dict`` was taken."""
        self.agrees = bool(state["agrees"]) if "agrees" in state else None


def padded_states(model: Any, batch: HasSequences, wanted: Tensor) -> tuple[Tensor, int]:
    """The wanted states and the number of real positions, a row a sequence."""
    tokens = to_device(torch.cat([batch.prompt_tokens, batch.response_tokens], 1), model.device)
    mask = to_device(torch.cat([batch.prompt_mask, batch.response_mask], 1), model.device)
    positions = (mask.long().cumsum(1) - 1).clamp(min=0)
    states = model.base_model(
        input_ids=tokens, attention_mask=mask.long(), position_ids=positions, use_cache=False
    ).last_hidden_state
    return states[:, batch.prompt_tokens.shape[1] - 1 :][wanted], int(mask.sum())


def packed_states(model: Any, batch: HasSequences, wanted: Tensor) -> tuple[Tensor, int]:
    """The same with each distinct prompt computed once."""
    packed = once(batch, "packed", lambda: pack(batch)).to(model.device)
    places = packed.index[wanted]
    if is_plain(model):
        return gemma_states(model, packed, places)
    states = model.base_model(
        input_ids=packed.tokens, position_ids=packed.positions, use_cache=False,
        attention_mask=masks_for(model.config.get_text_config(), packed, model.dtype),
    ).last_hidden_state  # fmt: skip
    return states.flatten(0, 1).index_select(0, places), packed.real  # not by brackets, whose gradient is slow


def _agrees(model: Any, batch: HasSequences, allowed: float) -> bool:
    """Whether the states are the same both ways, where a row holds all that it may hold, and in a real batch.

    A batch alone may not tell: where every row is one prompt with one response, any model's are.
    """
    prompts, answers = [[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10]]
    crowded = sequences([prompt for prompt in prompts for _ in answers], answers * len(prompts), 0)
    return all(_is_same(model, one, allowed) for one in (crowded, batch))


@torch.no_grad()
def _is_same(model: Any, batch: HasSequences, allowed: float) -> bool:
    """Whether the states are the same both ways: before the first response token and after every real one."""
    before = torch.ones_like(batch.response_mask[:, :1])
    real = to_device(torch.cat([before, batch.response_mask], 1), model.device)
    try:
        packed, padded = packed_states(model, batch, real)[0], padded_states(model, batch, real)[0]
    except torch.OutOfMemoryError:  # the padded way takes more
        raise
    except Exception as error:  # whatever a model says to a mask that it does not know
        let_through(error)
        _LOG.warning("Sequences are padded, not packed: %s", brief(error))
        return False
    gap = float(((packed - padded).abs().max() / padded.abs().max()).cpu())
    if not gap <= allowed:
        _LOG.warning("Sequences are padded, not packed: this model's packed states differ by %.2g", gap)
        return False
    return True
