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
    first: Tensor
    """(R, L) the place, counted through all rows, where the same position stands first: a prompt may stand again."""
    index: Tensor
    """(B, T + 1) places: column t is that of the state that response token t is predicted from."""

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
    prompts = _real(batch.prompt_tokens, batch.prompt_mask, left=True)
    responses = _real(batch.response_tokens, batch.response_mask, left=False)
    rows = _first_fit(_groups(prompts, responses))
    width = max(sum(group.size for group in row) for row in rows)
    laid = [_lay(row, responses, width) for row in rows]
    tokens, positions, group, response = torch.tensor([one for one, _ in laid]).unbind(1)
    first = torch.arange(len(rows) * width)
    index = torch.zeros((len(prompts), batch.response_mask.shape[1] + 1), dtype=torch.long)
    stood: dict[tuple[int, ...], int] = {}
    for r, (row, (_, starts)) in enumerate(zip(rows, laid, strict=True)):
        for one, (start, *answers) in zip(row, starts, strict=True):
            place, end = r * width + start, r * width + start + len(one.prompt)
            before = stood.setdefault(one.prompt, place)
            first[place:end] = torch.arange(before, before + len(one.prompt))
            for i, answer in zip(one.rows, answers, strict=True):
                index[i, 0] = end - 1
                index[i, 1 : len(responses[i]) + 1] = torch.arange(answer, answer + len(responses[i])) + r * width
    return Packed(tokens, positions, group, response, first.view(len(rows), width), index)


def _real(tokens: Tensor, mask: Tensor, left: bool) -> list[tuple[int, ...]]:
    """The ids of every row without its padding."""
    sizes, width = mask.sum(1).tolist(), mask.shape[1]
    return [
        tuple(row[width - size :] if left else row[:size])
        for row, size in zip(tokens.tolist(), sizes, strict=True)
    ]  # fmt: skip


def _lay(
    row: Sequence["_Group"], responses: Sequence[tuple[int, ...]], width: int
) -> tuple[list[list[int]], list[list[int]]]:
    """One row: tokens, position ids, group and response numbers; where every group's prompt and responses begin."""
    tokens: list[int] = []
    positions: list[int] = []
    group: list[int] = []
    response: list[int] = []
    starts = []
    for g, one in enumerate(row):
        begins = []
        for k, part in enumerate([one.prompt, *(responses[i] for i in one.rows)]):
            begins.append(len(tokens))
            start = len(one.prompt) if k else 0
            tokens += part
            positions += range(start, start + len(part))
            group += [g] * len(part)
            response += [k] * len(part)
        starts.append(begins)
    empty = width - len(tokens)
    return [tokens + [0] * empty, positions + [0] * empty, group + [-1] * empty, response + [0] * empty], starts


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
