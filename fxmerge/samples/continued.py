"""Samples, and what parents write from them: written part by part, as far as rows are read.

stretch 0    a share of the samples, and part 0 of every parent's text, shuffled
stretch 1    the next share, and part 1 of every text
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fxmerge.ir.program import Program
from fxmerge.samples.incremental import Incremental
from fxmerge.samples.rows import Samples, rows_of
from fxmerge.samples.varied import as_ports, masks_of
from fxmerge.samples.written import Writer
from fxmerge.training.pool import Inputs, digest


@dataclass(frozen=True)
class Text:
    """What a parent writes from its samples, without end, in parts of `size` rows."""

    writer: Writer
    samples: Samples
    named: Callable[[Samples], Samples]
    """From the parent's names of inputs to the program's that reads them."""
    size: int
    seed: int
    told: Callable[[int, int], None]
    """Told how many rows there are and how many there will be, before a part is written."""
    parts: dict[int, Samples] = field(default_factory=dict, repr=False)

    @cached_property
    def _each(self) -> Incremental | None:
        return self.writer.incremental(self.samples)

    def part(self, number: int) -> Samples:
        """Written when it is first asked for: the same bits whatever else was."""
        if number not in self.parts:
            done = len(self.parts) * self.size
            self.told(done, done + self.size)
            seed = (self.seed * 1_000_003 + number) % (1 << 63)
            self.parts[number] = self.named(self.writer.write(self.samples, self.size, seed, each=self._each))
        return self.parts[number]


@dataclass(frozen=True)
class Continued:
    """A table of all tasks' samples, by the program's names of inputs, and the first parts of texts."""

    samples: Samples
    texts: tuple[Text, ...]
    stretches: int
    program: Program
    block: int
    seed: int
    order: Tensor = field(init=False)
    """(rows, 3) of integers: stretch, source (0 for the samples, then the texts), row of the samples or of the part."""
    masks: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        every, order = torch.arange(rows_of(self.samples)), []
        for stretch in range(self.stretches):
            sources = [every[stretch :: self.stretches], *(torch.arange(text.size) for text in self.texts)]
            rows = [torch.stack([torch.full_like(each, n), each], 1) for n, each in enumerate(sources)]
            shuffled = torch.cat(rows)[torch.randperm(sum(map(len, rows)), generator=generator)]
            order.append(torch.cat([torch.full((len(shuffled), 1), stretch), shuffled], 1))
        object.__setattr__(self, "order", torch.cat(order))
        object.__setattr__(self, "masks", frozenset(masks_of(self.samples)))

    @property
    def rows(self) -> int:
        return len(self.order)

    def read(self, number: int) -> Inputs:
        order = self.order[number * self.block : (number + 1) * self.block]
        made = {name: value.new_empty((len(order), *value.shape[1:])) for name, value in self.samples.items()}
        for stretch, source in dict.fromkeys(map(tuple, order[:, :2].tolist())):
            own = (order[:, 0] == stretch) & (order[:, 1] == source)
            given = self.texts[source - 1].part(stretch) if source else self.samples
            for name, value in made.items():
                value[own] = given[name][order[own, 2]].to(value.dtype)
        rows = as_ports(made, self.masks, self.program)
        return tuple(rows[port.name].contiguous() for port in self.program.inputs)

    def identity(self) -> Any:
        return [self.rows, self.block, self.seed, [digest(value) for value in self.samples.values()]]
