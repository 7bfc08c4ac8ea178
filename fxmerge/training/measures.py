"""How far a student's answers are from its teachers', by kind of answer: 0 is none, 1 what the best constant gets.

Squares          features, scores of classes: squared error as a share of the spread
Distributions    scores of the next token: Kullback–Leibler divergence as a share of what tokens tell beyond their
                 mean frequencies
Places           scores over a map or along a text: half of the error is of all places alike, half of those where
                 the teacher sees something
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

SAMPLE = 1 << 22
"""Numbers of a feature that its statistics are taken from, where they need the values themselves."""
NORMAL = 3.0
"""Kurtosis of a normal distribution."""
LOUDEST = 100.0
"""No place counts more than this many times the mean of all."""


class Measure(Protocol):
    """Learns from what teachers answer, then says how far other answers are. Values are (..., channels)."""

    @property
    def constant(self) -> bool:
        """Whether the teacher gave one answer to everything."""
        ...

    def see(self, values: Tensor) -> None:
        """More of the teacher's answers."""
        ...

    def settle(self) -> None:
        """There are no more."""
        ...

    def error(self, mine: Tensor, theirs: Tensor) -> Tensor:
        """Mean over the places."""
        ...


@dataclass(frozen=True)
class Kind:
    """A kind of answer: what measures it, and the axis of its channels."""

    measure: Callable[[], Measure]
    axis: int = -1


class Squares:
    """Mean squared error, divided by the mean over the channels of their variance."""

    def __init__(self) -> None:
        self.moments = _Moments()
        self.constant, self.spread = False, 1.0

    def see(self, values: Tensor) -> None:
        self.moments.add(values)

    def settle(self) -> None:
        self.constant, self.spread = self.moments.constant, self.moments.spread
        self.moments = _Moments()

    def error(self, mine: Tensor, theirs: Tensor) -> Tensor:
        square = (mine.to(theirs.dtype) - theirs).square()
        return (square.mean() if square.numel() else square.sum()) / self.spread


class Distributions:
    """KL(teacher ‖ student) over the last axis, divided by its mean for the teacher's mean distribution."""

    def __init__(self) -> None:
        self.count, self.entropy = 0, 0.0
        self.total: Tensor | float = 0.0
        self.constant, self.spread = False, 1.0

    def see(self, values: Tensor) -> None:
        logs = torch.log_softmax(values.reshape(-1, values.shape[-1]).double(), -1)
        self.total = self.total + logs.exp().sum(0)
        self.entropy -= float((logs.exp() * logs).sum())
        self.count += len(logs)

    def settle(self) -> None:
        mean = torch.as_tensor(self.total) / max(self.count, 1)
        spread = float(-torch.special.xlogy(mean, mean).sum()) - self.entropy / max(self.count, 1)
        self.constant = not spread > 1e-9
        self.spread = 1.0 if self.constant else spread

    def error(self, mine: Tensor, theirs: Tensor) -> Tensor:
        wanted, given = torch.log_softmax(theirs, -1), torch.log_softmax(mine.to(theirs.dtype), -1)
        if not wanted.numel():
            return given.sum()
        return (wanted.exp() * (wanted - given)).sum(-1).mean() / self.spread


class Places:
    """Squared error of every channel by its own variance, at half of it weighted by how active the teacher is there.

    A place is active where rarely moved channels move: channels are weighted by how much heavier their tails are than
    a normal distribution's, as those of an objectness or of a rare class are. Where no channel is such, all places
    count alike.
    """

    def __init__(self) -> None:
        self.kept: list[Tensor] = []
        self.numbers = 0
        self.constant = False
        self.middle = self.scale = self.tails = self.variance = torch.ones(())
        self.mean = 1.0

    def see(self, values: Tensor) -> None:
        rows = values.reshape(-1, values.shape[-1]).double()
        self.kept.append(rows)
        self.numbers += rows.numel()
        if self.numbers > 2 * SAMPLE:
            whole = torch.cat(self.kept)
            self.kept = [whole[torch.linspace(0, len(whole) - 1, max(1, SAMPLE // whole.shape[1])).long()]]
            self.numbers = self.kept[0].numel()

    def settle(self) -> None:
        rows = torch.cat(self.kept)
        self.kept = []
        self.middle = rows.median(0).values
        variance = rows.var(0, unbiased=False)
        size = float(variance.mean())
        self.constant = not size > 1e-12 * max(float(rows.square().mean()), 1e-30)
        self.scale = variance.clamp(min=max(1e-6 * size, 1e-30)).sqrt()
        kurtosis = ((rows - rows.mean(0)) / self.scale).pow(4).mean(0)
        tails = (kurtosis - NORMAL).clamp(min=0)
        self.tails = tails / tails.sum().clamp(min=1e-30)
        self.mean = 1.0
        self.mean = max(float(self._active(rows).mean()), 1e-30)
        weights = self._weights(rows)[:, None]
        centre = (weights * rows).sum(0) / weights.sum()
        found = (weights * (rows - centre).square()).sum(0) / weights.sum()
        self.variance = found.clamp(min=max(1e-6 * size, 1e-30))

    def _active(self, rows: Tensor) -> Tensor:
        like = {"dtype": rows.dtype, "device": rows.device}
        moved = ((rows - self.middle.to(**like)) / self.scale.to(**like)).square()  # type: ignore[call-overload]
        active: Tensor = (moved * self.tails.to(**like)).sum(-1) / self.mean  # type: ignore[call-overload]
        return active.clamp(max=LOUDEST)

    def _weights(self, rows: Tensor) -> Tensor:
        return (1 + self._active(rows)) / 2 if float(self.tails.sum()) > 0 else torch.ones_like(rows[:, 0])

    def error(self, mine: Tensor, theirs: Tensor) -> Tensor:
        given, wanted = (value.reshape(-1, value.shape[-1]) for value in (mine.to(theirs.dtype), theirs))
        if not wanted.numel():
            return given.sum()
        square = (given - wanted).square() / self.variance.to(dtype=wanted.dtype, device=wanted.device)
        weights = self._weights(wanted)
        return (weights[:, None] * square).mean() / weights.mean()


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
