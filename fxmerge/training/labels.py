"""Teachers label a pool of unlabeled inputs once: the features a student shall learn to give."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

CHUNK = 256
"""Rows the teachers see at a time."""


@dataclass(frozen=True)
class Pool:
    """Unlabeled inputs, one tensor per positional input of student and teachers, rows first."""

    inputs: tuple[Tensor, ...]

    @property
    def rows(self) -> int:
        return len(self.inputs[0])

    def first(self, rows: int) -> Pool:
        """The pool's first rows."""
        return Pool(tuple(value[:rows] for value in self.inputs))


@dataclass(frozen=True)
class Targets:
    """What the student is compared with: its i-th output with the i-th output of `teacher`.

    `teacher(*inputs)` runs all parents and gives a tuple of tensors, rows first.
    """

    teacher: nn.Module
    weights: tuple[float, ...] = ()
    """Weight of every feature in the loss; all 1 when empty."""
    masks: tuple[int | None, ...] = ()
    """For each feature, the position of the input (B, T) that is 1 where axis 1 of the feature counts; or None."""


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
class Labels:
    """The features of a pool, or the teacher to compute them for a batch when they are too many to keep."""

    spread: tuple[float, ...]
    """Of each feature: mean squared distance from its mean over the rows (and positions that count)."""
    weights: tuple[float, ...]
    masks: tuple[int | None, ...]
    seconds: float
    features: tuple[Tensor, ...] | None = None
    compute: Callable[[Sequence[Tensor]], tuple[Tensor, ...]] | None = field(default=None)

    def of(self, rows: Tensor, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The features of these rows, whose inputs are given (on the training device)."""
        if self.features is not None:
            return tuple(value[rows].to(inputs[0].device) for value in self.features)
        assert self.compute is not None
        return self.compute(inputs)

    def mask(self, feature: int, inputs: Sequence[Tensor]) -> Tensor | None:
        place = self.masks[feature]
        return None if place is None else inputs[place]


def label(
    pool: Pool,
    targets: Targets,
    device: torch.device,
    dtype: torch.dtype,
    limit: int,
    progress: Callable[[int, int, str], None],
) -> Labels:
    """Run the teachers over the pool in chunks; features are kept (float32 or float64) within `limit` bytes."""
    start = time.perf_counter()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    home = next((t.device for t in targets.teacher.parameters()), torch.device("cpu"))
    targets.teacher.to(device)

    def compute(inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad():
            return tuple(value.to(wide) for value in targets.teacher(*inputs))

    chunks = [torch.split(value, CHUNK) for value in pool.inputs]
    kept: list[tuple[Tensor, ...]] = []
    moments: list[_Moments] = []
    keep = True
    for i, parts in enumerate(zip(*chunks, strict=True)):
        inputs = [part.to(device) for part in parts]
        given = compute(inputs)
        masks = targets.masks or (None,) * len(given)
        moments = moments or [_Moments() for _ in given]
        for moment, value, place in zip(moments, given, masks, strict=True):
            moment.add(value, None if place is None else inputs[place])
        size = sum(value.numel() * value.element_size() for value in given) * len(chunks[0])
        keep = keep and size <= limit
        if keep:
            kept.append(tuple(value.cpu() for value in given))
        elif i == 3:
            break
        progress(min(pool.rows, (i + 1) * CHUNK), pool.rows, "parents' features")
    count = len(moments)
    features = tuple(torch.cat(values) for values in zip(*kept, strict=True)) if keep else None
    if keep:
        targets.teacher.to(home)
    return Labels(
        tuple(moment.spread() for moment in moments),
        targets.weights or (1.0,) * count,
        targets.masks or (None,) * count,
        time.perf_counter() - start,
        features,
        None if keep else compute,
    )


class _Moments:
    """Count, sum and sum of squares of a feature, per channel (its last axis), in float64."""

    def __init__(self) -> None:
        self.count = 0.0
        self.total: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0

    def add(self, value: Tensor, mask: Tensor | None) -> None:
        rows = value.double()
        rows = rows[mask != 0] if mask is not None else rows
        rows = rows.reshape(-1, rows.shape[-1]) if rows.dim() > 1 else rows[:, None]
        self.count += len(rows)
        self.total = self.total + rows.sum(0)
        self.squares = self.squares + rows.square().sum(0)

    def spread(self) -> float:
        """Mean over the channels of their variance; 1 for a feature that never varies."""
        if not self.count or isinstance(self.total, float) or isinstance(self.squares, float):
            return 1.0
        variance = self.squares / self.count - (self.total / self.count).square()
        mean = float(variance.clamp(min=0).mean())
        scale = float((self.squares / self.count).mean())
        return mean if mean > 1e-12 * max(scale, 1e-30) else 1.0
