"""Many responses in few rows: each distinct prompt is computed once, and hardly a position is padding.

A row holds groups one after another; a group is a prompt and the responses to it. A response sees its own
prompt and itself, so its hidden states are those of the padded way:

    sees(i, j) = same group(i, j) ∧ j ≤ i ∧ (j is of the prompt ∨ same response(i, j))

Position ids run on from the prompt in every response. Only transformers' own modules are used, so the mask has
the form that an architecture asks for: see :func:`masks_for`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from gemma_alignment.modeling.sequences import HasSequences

WIDTH = 128
"""Positions that a row is filled up to. A longer group is split, its prompt computed once more."""


@dataclass(frozen=True)
class Packed:
    """R rows of L positions, and where the states of the padded form are found in them."""

    tokens: Tensor
    """(R, L) ids."""
    positions: Tensor
    """(R, L) position ids."""
    group: Tensor
    """(R, L) number of the group in its row; −1 is padding."""
    response: Tensor
    """(R, L) number of the response in its group; 0 is the prompt."""
    index: Tensor
    """(B, T + 1) flat positions: column t is the state that response token t is predicted from."""

    @property
    def real(self) -> int:
        """Positions that are no padding."""
        return int((self.group >= 0).sum())

    def to(self, device: torch.device) -> "Packed":
        """The same on another device."""
        return Packed(*(getattr(self, one.name).to(device) for one in fields(self)))

    def sees(self, window: int | None = None) -> Tensor:
        """(R, L, L) which position attends to which; padding attends to itself alone."""
        length = self.tokens.shape[1]
        group, response, positions = self.group, self.response, self.positions
        same = (group[:, :, None] == group[:, None, :]) & (group[:, :, None] >= 0)
        mine = (response[:, None, :] == 0) | (response[:, :, None] == response[:, None, :])
        order = torch.ones(length, length, dtype=torch.bool, device=self.tokens.device).tril()
        seen = same & mine & order
        if window is not None:
            seen &= positions[:, :, None] - positions[:, None, :] < window
        return seen | torch.eye(length, dtype=torch.bool, device=seen.device)


@dataclass(frozen=True)
class _Group:
    """A prompt and the numbers of the responses to it that share a row with it."""

    prompt: tuple[int, ...]
    rows: list[int]
    size: int
    """Positions."""


def pack(batch: HasSequences) -> Packed:
    """Group the rows of a padded batch by their prompts and lay the groups into rows."""
    prompts = [tuple(row[m].tolist()) for row, m in zip(batch.prompt_tokens, batch.prompt_mask, strict=True)]
    responses = [row[m].tolist() for row, m in zip(batch.response_tokens, batch.response_mask, strict=True)]
    rows = _first_fit(_groups(prompts, responses))
    width = max(sum(group.size for group in row) for row in rows)
    tokens, positions, response = torch.zeros((3, len(rows), width), dtype=torch.long)
    group = torch.full((len(rows), width), -1)
    index = torch.zeros((len(prompts), batch.response_mask.shape[1] + 1), dtype=torch.long)
    for r, row in enumerate(rows):
        at = 0
        for g, one in enumerate(row):
            asked = r * width + at + len(one.prompt) - 1
            for k, part in enumerate([list(one.prompt), *(responses[i] for i in one.rows)]):
                here, start = slice(at, at + len(part)), len(one.prompt) if k else 0
                tokens[r, here] = torch.tensor(part, dtype=torch.long)
                positions[r, here] = torch.arange(start, start + len(part))
                group[r, here], response[r, here] = g, k
                if k:
                    states = torch.arange(r * width + at, r * width + at + len(part))
                    index[one.rows[k - 1], : len(part) + 1] = torch.cat([torch.tensor([asked]), states])
                at += len(part)
    return Packed(tokens, positions, group, response, index)


def _groups(prompts: Sequence[tuple[int, ...]], responses: Sequence[Sequence[int]]) -> list[_Group]:
    """The responses of each prompt, in as many groups as the width asks for."""
    open_groups: dict[tuple[int, ...], _Group] = {}
    closed = []
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        group = open_groups.get(prompt, _Group(prompt, [], len(prompt)))
        if group.rows and group.size + len(response) > WIDTH:
            closed.append(group)
            group = _Group(prompt, [], len(prompt))
        open_groups[prompt] = _Group(prompt, [*group.rows, i], group.size + len(response))
    return [*closed, *open_groups.values()]


def _first_fit(groups: list[_Group]) -> list[list[_Group]]:
    """Groups into rows: each where it still fits, the largest first."""
    rows: list[list[_Group]] = []
    for group in sorted(groups, key=lambda one: -one.size):
        for row in rows:
            if sum(one.size for one in row) + group.size <= WIDTH:
                row.append(group)
                break
        else:
            rows.append([group])
    return rows


def masks_for(config: Any, packed: Packed, dtype: torch.dtype) -> Any:
    """The additive mask (R, 1, L, L), 0 or the least number, in the form that the architecture takes.

    Layers of more than one kind (Gemma 2 and 3, Qwen 2 with a window) take one for each kind by name; a window
    without kinds (Mistral) takes one mask, already windowed; everything else takes a full one. A float mask,
    since eager attention adds what it is given.
    """

    def additive(window: int | None) -> Tensor:
        seen = packed.sees(window)[:, None]
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)

    window = getattr(config, "sliding_window", None)
    kinds: Sequence[str] = getattr(config, "layer_types", None) or ()
    if len(set(kinds)) > 1:
        return {"full_attention": additive(None), "sliding_attention": additive(window)}
    sliding = window is not None and (not kinds or kinds[0] == "sliding_attention")
    return additive(window if sliding else None)
