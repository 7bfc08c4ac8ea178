"""Where the rows of a feature are: it stands as the model has it, time first, say, or rows and time as one axis."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The rows run along `axis`, inside of `outer` other places of it; what is left of it lies inside of a row."""

    axis: int = 0
    outer: int = 1

    @property
    def plain(self) -> bool:
        """Whether the rows are the first axis, if perhaps with more inside of each."""
        return self.axis == 0 and self.outer == 1

    def rows_first(self, value: Tensor, rows: int) -> Tensor:
        """The value with one entry of the first axis for every row."""
        if self.plain and value.shape[0] == rows:
            return value
        sizes = list(value.shape)
        sizes[self.axis : self.axis + 1] = [self.outer, rows, sizes[self.axis] // (self.outer * rows)]
        return value.reshape(sizes).movedim(self.axis + 1, 0)


def layouts(many: Sequence[Tensor], few: Sequence[Tensor], rows: int, fewer: int) -> tuple[Layout | None, ...]:
    """The layout of every feature, from its values for `rows` rows and for the first `fewer` of them.

    None for a feature that has no rows: it is the same however many there are.
    """
    return tuple(_layout(x, y, rows, fewer) for x, y in zip(many, few, strict=True))


def _layout(many: Tensor, few: Tensor, rows: int, fewer: int) -> Layout | None:
    for axis, (size, smaller) in enumerate(zip(many.shape, few.shape, strict=True)):
        if size == smaller:
            continue
        each, rest = divmod(size, rows)
        assert rest == 0, f"{size} places for {rows} rows"
        outer = (n for n in range(1, each + 1) if each % n == 0)
        found = [Layout(axis, n) for n in outer]
        gaps = [_gap(layout, many, few, rows, fewer) for layout in found]
        return found[gaps.index(min(gaps))]
    return None


def _gap(layout: Layout, many: Tensor, few: Tensor, rows: int, fewer: int) -> float:
    """How far the first rows of both are apart, when they are read like this."""
    a, b = layout.rows_first(many, rows)[:fewer], layout.rows_first(few, fewer)
    return float((a.double() - b.double()).abs().nan_to_num(torch.inf).sum())
