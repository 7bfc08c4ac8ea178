"""New rows of token ids from old ones: crops, halves of two rows joined, spans swapped, some tokens replaced.

A token that stands first (last) in every row keeps its place there; rows are padded exactly as the samples are,
on the same side and with the same ids, and rows that are never padded stay full. Inputs of the same shape go along:
a mask is made anew, other inputs follow their token, and inputs that are equal in all rows stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

STEPS = ("join-rows", "crop", "swap-spans", "replace-tokens")


def groups(samples: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Inputs that describe the same tokens: (B, T) integers, and 0/1 masks beside them, of one length T."""
    found: dict[int, dict[str, Tensor]] = {}
    flat = {name: value for name, value in samples.items() if value.dim() == 2}
    for name, value in flat.items():
        if not value.is_floating_point():
            found.setdefault(value.shape[1], {})[name] = value
    for name, value in flat.items():
        if value.is_floating_point() and value.shape[1] in found and _is_binary(value):
            found[value.shape[1]][name] = value
    return list(found.values())


@dataclass(frozen=True)
class Layout:
    """Where the real tokens of every row are, and which of them keep their place."""

    ids: str
    mask: str | None
    start: np.ndarray
    end: np.ndarray
    left: bool
    """Padding stands before the tokens, not after them."""
    head: int
    tail: int
    padded: bool


def layout_of(group: Mapping[str, Tensor]) -> Layout:
    """Read the layout off the values: the ids vary most, a mask is one run of ones in every row."""
    ids = max(group, key=lambda name: len(torch.unique(group[name])))
    mask = mask_of({name: value for name, value in group.items() if name != ids})
    table = group[ids]
    real = group[mask] != 0 if mask else _unpadded(table)
    start = real.int().argmax(1)
    end = table.shape[1] - real.flip(1).int().argmax(1)
    rows = torch.arange(len(table))
    first, last = table[rows, start], table[rows, end - 1]
    head = int(bool((first == first[0]).all()))
    tail = int(bool((last == last[0]).all()) and int((end - start).min()) > head + 1)
    return Layout(ids, mask, start.numpy(), end.numpy(), bool(start.any()), head, tail, not bool(real.all()))


def mask_of(group: Mapping[str, Tensor]) -> str | None:
    """The input that marks real tokens: ones in one run from the start (or to the end) of every row, zeros elsewhere.

    If several do, the one with most ones: token types may look like a mask of some tokens.
    """
    found = [name for name, value in group.items() if _is_mask(value)]
    return max(found, key=lambda name: int(group[name].sum()), default=None)


def _is_binary(value: Tensor) -> bool:
    return bool(((value == 0) | (value == 1)).all())


def _is_mask(value: Tensor) -> bool:
    if not _is_binary(value):
        return False
    ones = value.int()
    borders = (ones[:, 1:] != ones[:, :-1]).sum(1)
    touching = bool((ones[:, 0] == 1).all()) or bool((ones[:, -1] == 1).all())
    return touching and int(borders.max() if borders.numel() else 0) <= 1


def _unpadded(ids: Tensor) -> Tensor:
    """Without a mask, padding is an id that fills the ends of some rows and is never followed by another."""
    for table, flip in ((ids, False), (ids.flip(1), True)):
        pad = table[:, -1].mode().values
        here = table == pad
        runs = here.flip(1).int().cumprod(1).flip(1).bool()
        if int(runs.sum(1).max()) > 1 and bool((runs == here).all()) and not bool(runs.all(1).any()):
            return ~(runs.flip(1) if flip else runs)
    return torch.ones_like(ids, dtype=torch.bool)


class TokenRows:
    """Makes new rows of a group of inputs that describe the same tokens."""

    def __init__(self, group: Mapping[str, Tensor]) -> None:
        self.group, self.layout = group, layout_of(group)
        self.length = group[self.layout.ids].shape[1]
        spans = [_span(self.layout, row, self.length) for row in range(len(self.layout.start))]
        self.moving = torch.from_numpy(np.concatenate(spans))

    def make(self, first: Tensor, second: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """One new row for every pair of rows (`first`, `second`), for every input of the group."""
        layout, length = self.layout, self.length
        draws = torch.rand(len(first), 8, generator=generator, dtype=torch.float64).numpy()
        where = np.full((len(first), length), -1, dtype=np.int64)
        body = np.zeros((len(first), length), dtype=bool)
        for row, (a, b) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
            middle = _body(_span(layout, a, length), _span(layout, b, length), draws[row])
            _place(layout, where[row], body[row], a, middle)
        index, inside = torch.from_numpy(where), torch.from_numpy(body)
        swapped = self._replace(index, inside, torch.from_numpy(draws[:, 7]), generator)
        return {name: _gather(layout, name, value, index, swapped) for name, value in self.group.items()}

    def _replace(self, index: Tensor, body: Tensor, draw: Tensor, generator: torch.Generator) -> Tensor:
        """In half of the rows, a tenth of the moving tokens become tokens drawn from all that move in the samples."""
        hit = body & (draw < 0.5)[:, None] & (torch.rand(index.shape, generator=generator) < 0.1)
        if not len(self.moving):
            return index
        chosen = self.moving[torch.randint(len(self.moving), (int(hit.sum()),), generator=generator)]
        return index.masked_scatter(hit, chosen)


def pad_alike(tasks: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """The samples of several tasks with their token rows at one length, where masks say what is padding.

    Rows are filled as the samples are: on the same side, with the same ids. Inputs without a mask stay as they are.
    """
    padded = [dict(task) for task in tasks]
    for names in {tuple(sorted(group)) for task in tasks for group in groups(task)}:
        own = [{name: task[name] for name in names} for task in tasks]
        if any(len({value.shape[1:] for value in group.values()}) > 1 for group in own):
            continue
        layouts = [layout_of(group) for group in own]
        length = max(group[names[0]].shape[1] for group in own)
        if any(layout.mask is None for layout in layouts):
            continue
        left = any(layout.left for layout in layouts)
        filled = [(layout, group) for layout, group in zip(layouts, own, strict=True) if layout.padded]
        for k, (layout, group) in enumerate(zip(layouts, own, strict=True)):
            model, other = (layout, group) if layout.padded or not filled else filled[0]
            for name, value in group.items():
                pad = 0 if name == layout.mask else int(_padding(model, other[name]))
                extra = value.new_full((len(value), length - value.shape[1]), pad)
                padded[k][name] = torch.cat([extra, value] if left else [value, extra], 1)
    return padded


def _span(layout: Layout, row: int, length: int) -> np.ndarray:
    """Flat positions of the tokens of a row that may move."""
    return np.arange(layout.start[row] + layout.head, layout.end[row] - layout.tail) + row * length


def _body(a: np.ndarray, b: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Half of the rows: the front of `a` and the back of `b`; a quarter: a crop of `a`; the rest: `a`. Then swaps."""
    if draw[0] < 0.5:
        out = np.concatenate([a[: round(draw[1] * len(a))], b[round(draw[1] * len(b)) :]])
    elif draw[0] < 0.75:
        size = max(1, round((0.4 + 0.6 * draw[1]) * len(a)))
        begin = round(draw[2] * (len(a) - size))
        out = a[begin : begin + size]
    else:
        out = a
    if draw[3] < 0.25:
        low, high = sorted((round(draw[4] * len(out)), round(draw[5] * len(out))))
        out = np.concatenate([out[low:high], out[:low], out[high:]])
    return out if len(out) else a


def _place(layout: Layout, where: np.ndarray, body: np.ndarray, row: int, middle: np.ndarray) -> None:
    """Write first token, body and last token of a new row; -1 stays where there is padding."""
    length, edge = len(where), layout.head + layout.tail
    if not layout.padded:
        middle = np.resize(middle, length - edge)
    middle = middle[: length - edge]
    size = len(middle) + edge
    begin = length - size if layout.left else 0
    where[begin + layout.head : begin + size - layout.tail] = middle
    body[begin + layout.head : begin + size - layout.tail] = True
    if layout.head:
        where[begin] = layout.start[row] + row * length
    if layout.tail:
        where[begin + size - 1] = layout.end[row] - 1 + row * length


def _gather(layout: Layout, name: str, value: Tensor, index: Tensor, swapped: Tensor) -> Tensor:
    real = index >= 0
    if name == layout.mask:
        return real.to(value.dtype)
    if name != layout.ids and bool((value == value[0]).all()):
        return value[0].expand(len(index), -1).clone()
    taken = value.flatten()[(swapped if name == layout.ids else index).clamp(min=0)]
    return taken.where(real, _padding(layout, value))


def _padding(layout: Layout, value: Tensor) -> Tensor:
    """What the samples hold where there is no token."""
    if not layout.padded:
        return value.new_zeros(())
    row = int(np.argmax(value.shape[1] - (layout.end - layout.start)))
    return value[row, 0 if layout.left else -1]
