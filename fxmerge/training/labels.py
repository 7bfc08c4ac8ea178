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
        self.layouts: tuple[Layout | None, ...] = ()
        features = len(self.block(0, 0).features)
        self.weights = targets.weights or (1.0,) * features
        self.masks = targets.masks or (None,) * features
        self.spread: tuple[float, ...] = (1.0,) * features
        """Of each feature: mean squared distance from its mean over the rows (and positions that count)."""
        self.constant: tuple[bool, ...] = (False,) * features
        """Whether each feature has one value in all of them."""

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
        return made

    def measure(self, rows: int | None = SPREAD_ROWS, progress: Callable[[int, int], None] | None = None) -> None:
        """Set the spread of every feature, from the first rows of every table or from all."""
        moments = [_Moments() for _ in self.spread]
        tables = self.pool.tables
        total = sum(min(t.rows, rows or t.rows) for t in tables)
        done = 0
        for t, number in self.pool.blocks():
            if rows is not None and number * tables[t].block >= rows:
                continue
            block = self.block(t, number)
            for moment, value, place in zip(moments, block.features, self.masks, strict=True):
                moment.add(value if place is None else real(value, block.inputs[place.position], place.axis))
            done += len(block.inputs[0])
            if progress is not None:
                progress(min(done, total), total)
        self.spread = tuple(moment.spread for moment in moments)
        self.constant = tuple(moment.constant for moment in moments)

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


class _Moments:
    """Count, sum and sum of squares of a feature, per channel (its last axis), in float64."""

    def __init__(self) -> None:
        self.count = 0.0
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, value: Tensor) -> None:
        rows = value.double()
        rows = rows.reshape(-1, rows.shape[-1]) if rows.dim() > 1 else rows[:, None]
        self.count += len(rows)
        self.total = self.total + rows.sum(0)
        self.squares = self.squares + rows.square().sum(0)

    @property
    def scale(self) -> float:
        """Mean square."""
        return float(torch.as_tensor(self.squares / max(self.count, 1.0)).mean())

    @property
    def variance(self) -> float:
        """Mean over the channels of their variance."""
        mean = torch.as_tensor(self.total / max(self.count, 1.0))
        return float((torch.as_tensor(self.squares / max(self.count, 1.0)) - mean.square()).clamp(min=0).mean())

    @property
    def constant(self) -> bool:
        return not self.variance > 1e-12 * max(self.scale, 1e-30)

    @property
    def spread(self) -> float:
        """The variance; of a feature that never varies its mean square, or 1 where it is zero."""
        return self.variance if not self.constant else self.scale if self.scale > 1e-30 else 1.0
