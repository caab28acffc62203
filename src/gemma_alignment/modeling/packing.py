"""Many responses in few rows: a prompt stands once for many responses, and hardly a position is padding.

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
from gemma_alignment.modeling.transfers import to_device

WIDTH = 128
"""Positions that a row is filled up to, or up to the longest group.

A group is split where it would be longer than this and than twice its prompt: of a row, a prompt that is computed once
more is half at most. Rows without end would cost attention more than that saves.
"""


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
    """(R, L) the place, counted through all rows, where the same position stands first: prompts and responses that
    begin with the same tokens have the same positions until they part."""
    index: Tensor
    """(B, T + 1) places: column t is that of the state that response token t is predicted from."""

    @property
    def real(self) -> int:
        """Positions that are no padding."""
        return int((self.group >= 0).sum())

    def to(self, device: torch.device) -> "Packed":
        """The same on another device."""
        return Packed(*(to_device(getattr(self, one.name), device) for one in fields(self)))

    @property
    def ends(self) -> Tensor:
        """(R, L) whether a place is the last one of a response, which no other place attends to."""
        part = torch.stack([self.group, self.response])
        next_is_other = (part[:, :, 1:] != part[:, :, :-1]).any(0)
        return torch.nn.functional.pad(next_is_other, (0, 1), value=True) & (self.response > 0)

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
    prompts, masks = batch.prompt_tokens.cpu(), batch.prompt_mask.cpu()
    answers, real = batch.response_tokens.cpu(), batch.response_mask.cpu()
    asked = [tuple(row[len(row) - size :]) for row, size in zip(prompts.tolist(), masks.sum(1).tolist(), strict=True)]
    sizes = real.sum(1).tolist()
    rows = _first_fit(_groups(asked, sizes))
    width = max(sum(group.size for group in row) for row in rows)
    parts = torch.tensor(_parts(rows, sizes, width))
    part = torch.arange(len(parts)).repeat_interleave(parts[:, 1])
    place, size, position, group, response, of = parts.T
    step = torch.arange(len(part)) - (size.cumsum(0) - size)[part]
    where, source = place[part] + step, torch.cat([prompts, answers], 1)
    begins = torch.where(response == 0, prompts.shape[1] - size, prompts.shape[1])[part]
    laid = torch.zeros((4, len(rows) * width), dtype=torch.long)
    laid[2] = -1
    tokens = source[of[part], begins + step]
    laid[:, where] = torch.stack([tokens, position[part] + step, group[part], response[part]])
    stands = torch.arange(len(rows) * width)
    stands[where] = torch.tensor(_first(parts.tolist(), tokens.tolist()))
    ids, positions, groups, responses = laid.view(4, len(rows), width).unbind()
    return Packed(ids, positions, groups, responses, stands.view(len(rows), width), _index(parts, real))


def _parts(rows: Sequence[Sequence["_Group"]], sizes: Sequence[int], width: int) -> list[tuple[int, ...]]:
    """Every prompt and response in the order of the rows: where it stands, how long it is, its first position, the
    numbers of group and response in their row and group, and a row of the batch that it is of.
    """
    found: list[tuple[int, ...]] = []
    for r, row in enumerate(rows):
        place = r * width
        for g, group in enumerate(row):
            length = len(group.prompt)
            found.append((place, length, 0, g, 0, group.rows[0]))
            place += length
            for k, i in enumerate(group.rows, 1):
                found.append((place, sizes[i], length, g, k, i))
                place += sizes[i]
    return found


def _first(parts: Sequence[Sequence[int]], tokens: Sequence[int]) -> list[int]:
    """The place where each position stands first: one that ends the same tokens from the first one on."""
    stood: dict[tuple[int, int], int] = {}
    found: list[int] = []
    asked, begin = -1, 0
    for place, size, _, _, response, _ in parts:
        before = asked if response else -1
        for here, token in enumerate(tokens[begin : begin + size], place):
            before = stood.setdefault((before, token), here)
            found.append(before)
        begin += size
        asked = asked if response else before
    return found


def _index(parts: Tensor, real: Tensor) -> Tensor:
    """(B, T + 1) places of the states that response tokens are predicted from, and of the one after the last."""
    place, _, _, _, response, of = parts.T
    index = torch.zeros((len(real), real.shape[1] + 1), dtype=torch.long)
    answers = response > 0
    index[of[answers], 1:] = place[answers, None] + torch.arange(real.shape[1])
    index[:, 1:].masked_fill_(~real, 0)
    prompt = (~answers).cumsum(0)[answers] - 1
    place, size, *_ = parts[~answers].T
    index[of[answers], 0] = (place + size - 1)[prompt]
    return index


def _groups(prompts: Sequence[tuple[int, ...]], sizes: Sequence[int]) -> list[_Group]:
    """The responses of each prompt, in as many groups as WIDTH asks for."""
    open_groups: dict[tuple[int, ...], _Group] = {}
    closed = []
    for i, (prompt, size) in enumerate(zip(prompts, sizes, strict=True)):
        group = open_groups.get(prompt, _Group(prompt, [], len(prompt)))
        if group.rows and group.size + size > max(WIDTH, 2 * len(prompt)):
            closed.append(group)
            group = _Group(prompt, [], len(prompt))
        open_groups[prompt] = _Group(prompt, [*group.rows, i], group.size + size)
    return [*closed, *open_groups.values()]


def _first_fit(groups: list[_Group]) -> list[list[_Group]]:
    """Groups into rows: each where it still fits, the largest first."""
    width = max(WIDTH, *(group.size for group in groups))
    rows: list[list[_Group]] = []
    for group in sorted(groups, key=lambda one: -one.size):
        for row in rows:
            if sum(one.size for one in row) + group.size <= width:
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

    Raises:
        ValueError: for layers of another kind.
    """

    def additive(window: int | None) -> Tensor:
        seen = packed.sees(window)[:, None]
        return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)

    window = getattr(config, "sliding_window", None)
    kinds: Sequence[str] = getattr(config, "layer_types", None) or ()
    if other := sorted(set(kinds) - {"full_attention", "sliding_attention"}):
        raise ValueError(f"layers of the kind {other[0]} take no mask of which position attends to which")
    if len(set(kinds)) > 1:
        return {"full_attention": additive(None), "sliding_attention": additive(window)}
    sliding = window is not None and (not kinds or kinds[0] == "sliding_attention")
    return additive(window if sliding else None)
