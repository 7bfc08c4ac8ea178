"""Tables of rows that are made from samples, block by block, when they are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from fxmerge.ir.program import Program
from fxmerge.samples import token_rows
from fxmerge.samples.augment import Maker
from fxmerge.samples.rows import Samples
from fxmerge.training.pool import Inputs, digest


@dataclass(frozen=True)
class Varied:
    """Rows of one kind made from the samples of some tasks: the samples themselves, then new ones, shuffled.

    Every block has a generator of its own, so it has the same bits whenever it is made.
    """

    maker: Maker
    program: Program
    rows: int
    block: int
    seed: int
    kind: str
    plan: tuple[Tensor, Tensor, Tensor] = field(init=False)
    """Per row: the sample, the one mixed with it, and whether the sample is taken as it is."""
    masks: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        total = sum(self.maker.rows)
        if self.kind == "none":
            first = second = torch.arange(self.rows) % total
            kept = torch.ones(self.rows, dtype=torch.bool)
        else:
            own = torch.arange(total if 2 * total <= self.rows else 0)
            first, second = (torch.cat([own, self.maker.draw(self.rows - len(own), generator)]) for _ in range(2))
            kept = torch.arange(self.rows) < len(own)
        order = torch.randperm(self.rows, generator=generator)
        object.__setattr__(self, "plan", (first[order], second[order], kept[order]))
        every = torch.arange(total)[:: -(-total // 2048)]
        object.__setattr__(self, "masks", frozenset(masks_of(self.maker.take(every))))

    def named(self, number: int) -> Samples:
        """A block by input names, in the program's dtypes."""
        first, second, kept = (value[number * self.block : (number + 1) * self.block] for value in self.plan)
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + number + 1) % (1 << 63))
        rows = self.maker.take(first)
        if not bool(kept.all()):
            for name, value in self.maker.make(first[~kept], second[~kept], generator).items():
                rows[name][~kept] = value
        return as_ports(rows, self.masks, self.program)

    def read(self, number: int) -> Inputs:
        rows = self.named(number)
        return tuple(rows[port.name].contiguous() for port in self.program.inputs)

    def identity(self) -> Any:
        sums = [digest(task[name]) for task in self.maker.tasks for name in self.maker.kinds]
        return [self.kind, self.rows, self.block, self.seed, sums]


@dataclass(frozen=True)
class Beside:
    """Tables of tasks that have inputs of their own, row beside row."""

    tables: tuple[Varied, ...]
    names: Sequence[str]

    @property
    def rows(self) -> int:
        return min(table.rows for table in self.tables)

    @property
    def block(self) -> int:
        return min(table.block for table in self.tables)

    def read(self, number: int) -> Inputs:
        rows = {name: value for table in self.tables for name, value in table.named(number).items()}
        return tuple(rows[name].contiguous() for name in self.names)

    def identity(self) -> Any:
        return [table.identity() for table in self.tables]


def as_ports(rows: Samples, masks: frozenset[str], program: Program) -> Samples:
    """Rows in the program's dtypes, without the places at their end that are padding in all of them."""
    ports = {port.name: port for port in program.inputs}
    return _trimmed({name: value.to(ports[name].dtype) for name, value in rows.items()}, masks, program)


def _trimmed(rows: Samples, masks: frozenset[str], program: Program) -> Samples:
    """Rows without the places at their end that are padding in all of them, where the length is free."""
    for mask in masks:
        port = next(port for port in program.inputs if port.name == mask)
        length = port.shape[1]
        real = (rows[mask] != 0).any(0).nonzero()
        if not isinstance(length, str) or not len(real):
            continue
        longest = max(int(real.max()) + 1, program.ranges.get(length, (1, 0))[0])
        for other in program.inputs:
            if other.name in rows:
                for axis, size in enumerate(other.shape):
                    if size == length and rows[other.name].shape[axis] > longest:
                        rows[other.name] = rows[other.name].narrow(axis, 0, longest)
    return rows


def masks_of(inputs: Mapping[str, Tensor]) -> set[str]:
    """The inputs that are 1 at real tokens and 0 at padding."""
    return {name for group in token_rows.groups(inputs) if (name := token_rows.layout_of(group).mask)}
