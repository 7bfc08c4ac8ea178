"""Programs that take one number of rows alone, or at most so many, run on any number of rows: in blocks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from fxmerge.ir.port import Port

UNBOUNDED = 1 << 30
"""A size that may be as large as this has no bound."""


@dataclass(frozen=True)
class Block:
    """How the rows of a call are cut."""

    rows: int
    exact: bool
    """A block that has fewer rows is filled up with copies of them, and its outputs are cut again."""
    inputs: tuple[bool, ...]
    """Whether each input has rows; the others go into every block as they are."""
    outputs: tuple[int | None, ...]
    """The axis of each output that counts rows; None for one that has none, and is the same in every block."""


def is_batch(size: int | str) -> bool:
    """Whether a size is a number of rows."""
    return isinstance(size, str) and size.startswith("batch")


def block_of(inputs: Sequence[Port], outputs: Sequence[Port], ranges: Mapping[str, tuple[int, int]]) -> Block | None:
    """The blocks that a program needs; None if it takes any number of rows."""
    names = dict.fromkeys(port.shape[0] for port in inputs if port.shape and is_batch(port.shape[0]))
    bounds = [ranges[name] for name in names if isinstance(name, str) and name in ranges]
    highest = min((high for _, high in bounds), default=UNBOUNDED)
    if highest >= UNBOUNDED:
        return None
    with_rows = tuple(bool(p.shape) and is_batch(p.shape[0]) for p in inputs)
    axes = tuple(next((axis for axis, size in enumerate(p.shape) if is_batch(size)), None) for p in outputs)
    return Block(highest, any(low == high for low, high in bounds), with_rows, axes)


def in_blocks(once: Callable[..., Any], block: Block) -> Callable[..., Any]:
    """A function of any number of rows from one that takes a block."""

    @wraps(once)
    def forward(*args: Any) -> tuple[Tensor, ...]:
        *before, inputs = args[: len(args) - len(block.inputs)], args[len(args) - len(block.inputs) :]
        given = tuple(v.shape[0] for v, has in zip(inputs, block.inputs, strict=True) if has)
        total = given[0]
        if total == block.rows or (total < block.rows and not block.exact):
            result: tuple[Tensor, ...] = once(*args)
            return result
        parts = []
        for start in range(0, total, block.rows):
            index = torch.arange(start, min(start + block.rows, total))
            parts.append(_part(once, before[0], inputs, index, block))
        return tuple(
            values[0] if axis is None else torch.cat(values, axis)
            for values, axis in zip(zip(*parts, strict=True), block.outputs, strict=True)
        )

    return forward


def _part(
    once: Callable[..., Any], before: tuple[Any, ...], inputs: tuple[Tensor, ...], index: Tensor, block: Block
) -> tuple[Tensor, ...]:
    full = index[torch.arange(block.rows) % len(index)] if block.exact else index
    chosen = [v.index_select(0, full.to(v.device)) if has else v for v, has in zip(inputs, block.inputs, strict=True)]
    values = once(*before, *chosen)
    cut = zip(values, block.outputs, strict=True)
    return tuple(v if axis is None else v.narrow(axis, 0, len(index)) for v, axis in cut)
