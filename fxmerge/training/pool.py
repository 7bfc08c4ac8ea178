"""Unlabeled inputs to train on: tables of rows that are made when they are read, block by block.

    pool     table 0: block 0, block 1, …      rows of one shape; a block is what is made, and labelled, at a time
             table 1: block 0, …               rows of another shape: a longer text, a wider image

A step takes its share of every table. What it reads is a function of the step and the seed alone, so it is the same
whether blocks are kept or made again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

Inputs = tuple[Tensor, ...]
"""One tensor per positional input of student and teachers, rows first."""


class Table(Protocol):
    """Rows of inputs of one shape."""

    @property
    def rows(self) -> int: ...

    @property
    def block(self) -> int:
        """Rows of a block; the last one may have fewer."""
        ...

    def read(self, number: int) -> Inputs:
        """The inputs of a block: the same bits every time."""
        ...

    def identity(self) -> Any:
        """What differs between tables that hold different rows, as plain values."""
        ...


@dataclass(frozen=True)
class Stored:
    """Rows that are there already, as one block."""

    inputs: Inputs

    @property
    def rows(self) -> int:
        return len(self.inputs[0])

    @property
    def block(self) -> int:
        return max(1, self.rows)

    def read(self, number: int) -> Inputs:
        assert number == 0
        return self.inputs

    def identity(self) -> Any:
        return [digest(value) for value in self.inputs]


def digest(value: Tensor) -> list[float]:
    """Shape and sum of magnitudes: enough to tell one run's samples from another's."""
    return [*value.shape, float(value.double().abs().sum())]


@dataclass(frozen=True)
class Pool:
    """Unlabeled inputs of a run."""

    tables: tuple[Table, ...]
    masks: tuple[int, ...] = ()
    """Positions of the inputs that are 1 at real tokens and 0 at padding."""
    about: Mapping[str, Any] = field(default_factory=dict)
    """How it was made, for the result."""
    read: float = 1
    """How often a row is read at least in a run of the length that it was made for."""

    @classmethod
    def of(cls, inputs: Sequence[Tensor], masks: tuple[int, ...] = ()) -> Pool:
        """A pool of rows that are there already."""
        return cls((Stored(tuple(inputs)),), masks)

    @property
    def rows(self) -> int:
        return sum(table.rows for table in self.tables)

    def blocks(self) -> Iterator[tuple[int, int]]:
        """(table, block) of every block, the first of every table first."""
        counts = [-(-table.rows // table.block) for table in self.tables]
        for number in range(max(counts, default=0)):
            yield from ((t, number) for t, count in enumerate(counts) if number < count)

    def identity(self) -> Any:
        return [table.identity() for table in self.tables]


@dataclass(frozen=True)
class Part:
    """Rows of one block, as a step takes them."""

    table: int
    number: int
    rows: Tensor
    """Within the block."""


def parts(pool: Pool, step: int, batch: int, seed: int) -> list[Part]:
    """What a step reads: `batch` rows, of every table its share, from few blocks.

    A table is read in a new order every time through (blocks in a new order, but for the first time, so that what is
    never read is never made; rows in a new order within theirs) and without a remainder: a batch may end one time
    through and begin the next.
    """
    found = []
    for t, (table, count) in enumerate(zip(pool.tables, _shares(pool, batch), strict=True)):
        begin, end = step * count, (step + 1) * count
        while begin < end:
            turn, offset = divmod(begin, table.rows)
            order = _order(table.rows, table.block, (seed * 1_000_003 + turn) % (1 << 63), t, turn == 0)
            taken = order[offset : offset + end - begin]
            begin += len(taken)
            for number in dict.fromkeys((taken // table.block).tolist()):
                found.append(Part(t, number, taken[taken // table.block == number] - number * table.block))
    return found


def _shares(pool: Pool, batch: int) -> list[int]:
    """Rows of a batch by table: in proportion, at least one of each, `batch` in all where there are that many."""
    total, left, shares = pool.rows, batch, []
    for i, table in enumerate(pool.tables):
        others = len(pool.tables) - i - 1
        share = left if not others else max(1, min(round(batch * table.rows / total), left - others))
        shares.append(share)
        left -= share
    return [max(1, share) for share in shares]


@lru_cache(maxsize=16)
def _order(rows: int, block: int, seed: int, table: int, first: bool) -> Tensor:
    generator = torch.Generator().manual_seed((seed + 7919 * table) % (1 << 63))
    blocks = -(-rows // block)
    firsts = ((torch.arange(blocks) if first else torch.randperm(blocks, generator=generator)) * block).tolist()
    return torch.cat([f + torch.randperm(min(block, rows - f), generator=generator) for f in firsts])
