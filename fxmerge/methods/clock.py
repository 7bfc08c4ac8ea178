"""A budget of seconds turned into steps, by what a short run took."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from fxmerge.training.pool import Pool
from fxmerge.training.settings import Log, Settings

MOST = 10_000_000
"""No budget asks for more steps."""
SPARED = 0.97
"""Of the time that is left, this share is planned for: steps are not all alike."""
FEWEST = 20
"""Steps of a run or a trial, at least."""
TRIED = 0.5
"""Trials may take this share of a budget; where they would take more there are none."""
NO_TRIALS = "the budget has no time for trials; give a larger one to have them"


@dataclass(frozen=True)
class Clock:
    """The time until which a method may try and train."""

    until: float
    """By `time.perf_counter`."""

    @classmethod
    def of(cls, seconds: float) -> Clock:
        return cls(time.perf_counter() + seconds)

    @property
    def left(self) -> float:
        """Seconds."""
        return self.until - time.perf_counter()

    def plan(self, run: Callable[[int], float], trials: Callable[[int], float]) -> tuple[int, bool]:
        """The most steps that there is time for, and whether there is time for trials too; seconds by steps of each."""
        if trials(FEWEST) > TRIED * self.left:
            return self.most(run), False
        return self.most(lambda steps: run(steps) + trials(steps)), True

    def most(self, cost: Callable[[int], float]) -> int:
        """The most steps whose cost, in seconds, fits into what is left; FEWEST where not even they do."""
        low, high, seconds = FEWEST, FEWEST, SPARED * self.left
        while high < MOST and cost(high) <= seconds:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if cost(middle) <= seconds else (low, middle)
        return low


@dataclass(frozen=True)
class Pace:
    """What a short run took, in seconds."""

    step: float
    row: float
    """To make a row of the pool, and what the parents say of it."""
    look: float
    """To judge the student by held-back inputs."""

    @classmethod
    def of(cls, log: Log, look: float) -> Pace:
        return cls(log.seconds / log.steps, log.label_seconds / max(log.labelled, 1), look)

    def run(self, steps: int, pool: Pool, settings: Settings) -> float:
        """Of training itself: rows are made when they are first read."""
        return steps * self.step + min(steps * settings.batch_size / pool.read, pool.rows) * self.row

    def compared(self, held: Pool) -> float:
        """Of a student before and after training, by inputs that are held back."""
        return 2 * self.look + held.rows * self.row

    def trial(self, steps: int) -> float:
        """Of a trial whose rows are there."""
        return steps * self.step + self.look
