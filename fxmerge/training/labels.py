"""Teachers label unlabeled inputs: the features a student shall learn to give, block by block, kept while they fit."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from fxmerge.errors import OptionError
from fxmerge.training.layout import Layout, layouts
from fxmerge.training.measures import Kind, Squares
from fxmerge.training.pool import Inputs, Pool

CHUNK = 256
"""Rows the teachers see at a time at most."""
SPREAD_ROWS = 2048
"""Rows of every table that tell how widely features spread."""


class Mask(NamedTuple):
    """The input (B, T) that is 1 where a feature counts, by its position, and the feature's axis of T places."""

    position: int
    axis: int = 1


@dataclass(frozen=True)
class Targets:
    """What the student is compared with: its i-th output with the i-th output of `teacher`.

    `teacher(*inputs)` runs all parents and gives a tuple of tensors, rows first.
    """

    teacher: nn.Module
    weights: tuple[float, ...] = ()
    """Weight of every feature in the loss; all 1 when empty."""
    masks: tuple[Mask | None, ...] = ()
    kinds: tuple[Kind, ...] = ()
    """Of every feature; all `Squares` when empty."""


class Teachers(nn.Module):
    """Several modules as one: all run on the same inputs, their outputs (tensors or tuples) in one tuple."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parents = nn.ModuleList(modules)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        results: list[Tensor] = []
        for parent in self.parents:
            given = parent(*inputs)
            results += [given] if isinstance(given, Tensor) else list(given)
        return tuple(results)


@dataclass(frozen=True)
class Block:
    """Inputs with the features that teachers give for them, both on the CPU."""

    inputs: Inputs
    features: tuple[Tensor, ...]

    @property
    def size(self) -> int:
        return sum(value.numel() * value.element_size() for value in (*self.inputs, *self.features))


class Labels:
    """Blocks of a pool with their features (float32 or float64), made when read and kept within `limit` bytes.

    A block is always labelled whole, `chunk` rows at a time, so it has the same bits whether it is kept or made again.
    """

    def __init__(
        self, pool: Pool, targets: Targets, device: torch.device, dtype: torch.dtype, limit: int, chunk: int = CHUNK
    ) -> None:
        self.pool, self.device, self.limit, self.chunk = pool, device, limit, min(chunk, CHUNK)
        self.wide = torch.float64 if dtype == torch.float64 else torch.float32
        self.teacher = targets.teacher.to(device)
        self.kept: dict[tuple[int, int], Block] = {}
        self.last: tuple[tuple[int, int], Block] | None = None
        self.used = 0
        self.seconds = 0.0
        self.made = 0
        """Rows, each time they were made."""
        self.layouts: tuple[Layout | None, ...] = ()
        features = len(self.block(0, 0).features)
        self.weights = targets.weights or (1.0,) * features
        self.masks = targets.masks or (None,) * features
        self.kinds = targets.kinds or (Kind(Squares),) * features
        self.measures = tuple(kind.measure() for kind in self.kinds)

    @property
    def constant(self) -> tuple[bool, ...]:
        """Whether each feature has one value in all rows that were measured."""
        return tuple(measure.constant for measure in self.measures)

    def block(self, table: int, number: int) -> Block:
        """A block with its features; the last one read is always at hand."""
        key = (table, number)
        if key in self.kept:
            return self.kept[key]
        if self.last is not None and self.last[0] == key:
            return self.last[1]
        start = time.perf_counter()
        inputs = self.pool.tables[table].read(number)
        made = Block(inputs, self._features(inputs))
        self._check(made)
        if self.used + made.size <= self.limit:
            self.kept[key] = made
            self.used += made.size
        else:
            self.last = (key, made)
        self.seconds += time.perf_counter() - start
        self.made += len(inputs[0])
        return made

    def measure(self, rows: int | None = SPREAD_ROWS, progress: Callable[[int, int], None] | None = None) -> None:
        """Let the measure of every feature see the first rows of every table, or all."""
        self.measures = tuple(kind.measure() for kind in self.kinds)
        tables = self.pool.tables
        total = sum(min(t.rows, rows or t.rows) for t in tables)
        done = 0
        for t, number in self.pool.blocks():
            if rows is not None and number * tables[t].block >= rows:
                continue
            block = self.block(t, number)
            for i, (measure, value) in enumerate(zip(self.measures, block.features, strict=True)):
                measure.see(self.places(i, value, block.inputs))
            done += len(block.inputs[0])
            if progress is not None:
                progress(min(done, total), total)
        for measure in self.measures:
            measure.settle()

    def places(self, feature: int, value: Tensor, inputs: Sequence[Tensor]) -> Tensor:
        """The values of a feature at the places that count, its channels last."""
        if (mask := self.masks[feature]) is not None:
            return real(value, inputs[mask.position], mask.axis)
        return value.movedim(self.kinds[feature].axis, -1) if value.ndim > 1 else value

    def rows_first(self, feature: int, value: Tensor, rows: int) -> Tensor:
        """The values of a feature with one entry of the first axis for every row."""
        layout = self.layouts[feature]
        return value.expand(rows, *value.shape) if layout is None else layout.rows_first(value, rows)

    def _layouts(self, inputs: Inputs) -> tuple[Layout | None, ...]:
        """Where the rows of each feature are, seen at two numbers of rows."""
        few = [value[:3] for value in inputs]
        rows, many = len(few[0]), self._run(few)
        if rows == 1:
            return (Layout(),) * len(many)
        return layouts(many, self._run([value[: rows - 1] for value in few]), rows, rows - 1)

    def _features(self, inputs: Inputs) -> tuple[Tensor, ...]:
        with torch.no_grad():
            self.layouts = self.layouts or self._layouts(inputs)
            given = [
                [self.rows_first(i, value, len(part[0])) for i, value in enumerate(self._run(part))]
                for part in _chunks(inputs, self.chunk)
            ]
        return tuple(torch.cat(values) if len(values) > 1 else values[0] for values in zip(*given, strict=True))

    def _run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        given = self.teacher(*(value.to(self.device) for value in inputs))
        return [value.detach().to(self.wide).cpu() for value in given]

    def _check(self, made: Block) -> None:
        rows = len(made.inputs[0])
        fit = rows * self.limit // max(made.size, 1)
        if fit < min(rows, self.chunk):
            need = made.size / rows * min(rows, self.chunk) / (1 << 30)
            raise OptionError(
                f"a batch of {min(rows, self.chunk)} inputs with the parents' features takes {need:.2g} GiB,"
                f" over the {self.limit / (1 << 30):.2g} GiB there are for samples",
                f"use --batch-size {max(1, fit)} or less, or a larger --memory",
            )


def _chunks(inputs: Inputs, size: int) -> Iterator[list[Tensor]]:
    for begin in range(0, len(inputs[0]), size):
        yield [value[begin : begin + size] for value in inputs]


def real(value: Tensor, mask: Tensor, axis: int) -> Tensor:
    """The places of a feature that a mask (B, T) says are no padding, one after another; T runs along `axis`."""
    return value.movedim(axis, 1)[mask != 0]
