"""Which of several starts to train, with which optimizer and at what rate: short trials, fewer and longer ones.

    rung 1   every start x optimizer, at a middle rate, for a sixtieth of the steps
    rung 2   the two best starts x optimizer, at lower and higher rates, for a thirtieth
    rung 3   the best two, each also at the next rate towards the middle, for a fifteenth
    then     how inputs are varied, where that is left open; and all steps with what was best

A start that is clearly behind in one rung has no part in the next. Every trial trains on the same inputs and is judged
on held-back ones: successive halving (Jamieson and Talwalkar 2016). What a user names is not searched.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch

from fxmerge.errors import OptionError
from fxmerge.ir.program import Program
from fxmerge.methods.base import Job
from fxmerge.methods.clock import FEWEST, NO_TRIALS, Clock, Pace
from fxmerge.methods.starts import Start
from fxmerge.methods.student import groups, student_of, targets_of
from fxmerge.training.fit import fit_labelled, labels_of, score_labelled
from fxmerge.training.labels import Labels
from fxmerge.training.optimizers import OPTIMIZERS
from fxmerge.training.pool import Pool
from fxmerge.training.settings import Settings

RATE = 3e-3
"""The rate in the middle."""
APART = 3.0
"""Rates of rung 2 are this many times apart."""
SHARES = (60, 30, 15)
"""A trial of a rung takes one step in so many of the whole run."""
POOLS = 4
"""About so many pools of trials share the memory for samples."""
WORTH = 0.1
"""More training is advised if twice the steps of a trial lower the error by this share."""
FINALISTS = 2
MOST_RATES = 2
"""So many are tried to either side at most."""
NOT_BETTER = 0.95
"""Another rate is taken if its error is below this share of that of the one nearer to the middle."""
BEHIND = (1.5, 1.25)
"""A start whose error in a rung is this many times the best's is out."""


@dataclass(frozen=True)
class Try:
    """A start with a way to train it."""

    start: Start
    optimizer: str
    rate: float

    def __str__(self) -> str:
        return f"{self.start.name} with {self.optimizer} at {self.rate:.2g}"

    def settings(self, settings: Settings, steps: int) -> Settings:
        return replace(settings, optimizer=OPTIMIZERS[self.optimizer], lr=self.rate, steps=steps)


class Search:
    def __init__(self, job: Job, starts: Sequence[Start], steps: int, stack: ExitStack) -> None:
        self.job, self.starts, self.steps, self.stack = job, starts, steps, stack
        self.errors: dict[tuple[int, str, float, int, str], float] = {}
        """By start, optimizer, rate, steps and augmentation: no trial runs twice."""
        self.labelled: dict[tuple[str, float], Labels] = {}
        stack.callback(self.labelled.clear)
        self.pace: Pace | None = None
        self.hurried = False
        """Whether there is no time for trials."""
        options = job.options
        optimizers = ("muon", "adamw") if options.optimizer == "auto" else (options.optimizer,)
        self.field = [Try(start, each, options.lr or RATE) for start in starts for each in optimizers]

    def plan(self, clock: Clock) -> None:
        """As many steps as there is time for, by what the first trial takes; no more trials if they would take most."""
        self.steps = FEWEST
        self.error(self.field[0], 0)
        self.steps, tried = clock.plan(self.run, self.trials)
        self.hurried = not tried

    def run(self, steps: int) -> float:
        """Seconds of training itself, and of the comparison with its start."""
        assert self.pace is not None and self.job.pool is not None
        held = self._pool("held ", 1.0)
        return self.pace.run(steps, self.job.pool, self.job.settings) + self.pace.compared(held)

    def trials(self, steps: int) -> float:
        """Seconds of all trials of a run of so many steps."""
        assert self.pace is not None
        rates = 3 * 3 * (self.job.options.lr is None)
        kinds = len(self.job.pools.kinds) if self.job.pools else 0
        counts = (len(self.field), rates + kinds, 3)
        return sum(n * self.pace.trial(self._steps(rung, steps)) for rung, n in enumerate(counts))

    def _in_all(self) -> str:
        """How long everything will take, once a trial has shown it."""
        if self.pace is None:
            return ""
        seconds = self.run(self.steps) + self.trials(self.steps)
        return f", about {seconds:.0f} s in all" if seconds < 120 else f", about {seconds / 60:.0f} min in all"

    def recalled(self, known: Mapping[str, str | float]) -> Try:
        """What was chosen before an interruption, as far as it is left to trials still."""
        own = [each for each in self.field if each.start.name == known["start"]] or self.field
        one = next((each for each in own if each.optimizer == known["optimizer"]), own[0])
        return replace(one, rate=self.job.options.lr or float(known["lr"]))

    def best(self) -> Try:
        field = self.field
        if self.hurried:
            self.job.notes.append(f"polish {field[0]}: {NO_TRIALS}")
            return field[0]
        if len(field) > 1:
            starts = self._near(self._of_each_start(self._ranked(field, 0))[:2], 0)
            field = [each for each in field if any(each.start is near.start for near in starts)]
        if self.job.options.lr is None:
            field = [self._with_best_rate(each) for each in field]
            field = self._near(self._ranked(field, 1), 1)[:FINALISTS]
            field += [self._nearer(each) for each in field if each.rate != RATE]
        best = self._preferred(self._ranked(field, 2)) if len(field) > 1 else field[0]
        if self.errors:
            self.job.notes.append(f"polish {best}: smallest error on held-back inputs, or near it ({self._told()})")
            self.job.notes.extend(self._more(best))
        return best

    def _more(self, best: Try) -> Iterator[str]:
        """Whether more steps than there are would help, by what twice as many did in the trials."""
        number = next(i for i, start in enumerate(self.starts) if start is best.start)
        found = {n: e for (i, o, r, n, _), e in self.errors.items() if (i, o, r) == (number, best.optimizer, best.rate)}
        if len(found) < 2:
            return
        few, many = sorted(found)[-2:]
        if not 0 < found[many] < math.inf or not found[few] < math.inf:
            return
        gain = 1 - (found[many] / found[few]) ** (1 / math.log2(many / few))
        told = (
            f"twice the steps lowered the error by {gain:.0%} in the trials"
            if gain > 0
            else "twice the steps gained none in the trials"
        )
        if gain >= WORTH:
            yield f"more training would help: {told}; try --steps {2 * self.steps} or a larger --budget"
        else:
            yield f"more training would gain little: {told}"

    def said(self) -> list[dict[str, Any]]:
        """Every trial with its error, for the result."""
        return [
            {"start": self.starts[i].name, "optimizer": o, "lr": r, "steps": n, "augmentation": k, "error": round(e, 6)}
            for (i, o, r, n, k), e in self.errors.items()
        ]

    # -- trials ----------------------------------------------------------------------------------------

    @property
    def _likeliest(self) -> str:
        return self.job.pools.kinds[0] if self.job.pools else ""

    @property
    def _trials(self) -> int:
        """About how many there will be."""
        return len(self.field) + 9 * (self.job.options.lr is None) + 3

    def _ranked(self, field: Sequence[Try], rung: int) -> list[Try]:
        return sorted(field, key=lambda each: self.error(each, rung))

    def _near(self, ranked: Sequence[Try], rung: int) -> list[Try]:
        """Those that are not clearly behind the first."""
        most = BEHIND[rung] * self.error(ranked[0], rung)
        return [each for each in ranked if self.error(each, rung) <= most]

    def _with_best_rate(self, one: Try) -> Try:
        """At the best rate: below the middle one while that is clearly better, or else above.

        In a short trial the lowest rate looks best of a good start: it loses nothing that there is no time to regain.
        """
        best = one
        for step in (1 / APART, APART):
            for _ in range(MOST_RATES):
                other = replace(best, rate=best.rate * step)
                if self.error(other, 1) > NOT_BETTER * self.error(best, 1):
                    break
                best = other
            if best is not one:
                break
        return best

    def _preferred(self, ranked: Sequence[Try]) -> Try:
        """The best, unless Muon or a rate nearer to the middle is not clearly worse from the same start.

        Both do better in long training than in the short trials.
        """
        first = ranked[0]
        alike = [
            each
            for each in ranked
            if each.start is first.start and NOT_BETTER * self.error(each, 2) <= self.error(first, 2)
        ]
        return min(alike, key=lambda each: (each.optimizer != "muon", abs(math.log(each.rate / RATE))), default=first)

    def _nearer(self, one: Try) -> Try:
        """At the next rate towards the middle, which a longer trial may find to be the better one."""
        return replace(one, rate=one.rate * APART if one.rate < RATE else one.rate / APART)

    def _of_each_start(self, ranked: Sequence[Try]) -> list[Try]:
        best: dict[int, Try] = {}
        for each in ranked:
            best.setdefault(id(each.start), each)
        return list(best.values())

    def varied(self, one: Try, kind: str) -> float:
        """On held-back inputs, after a trial on inputs varied in this way, each seen as often as in the run itself.

        Seen once or twice, inputs as they are teach best; the run shows them a hundred times.
        """
        steps = self._steps(1, self.steps)
        return self._measured(one, steps, kind, steps / self.steps)

    def _steps(self, rung: int, whole: int) -> int:
        return min(whole, max(FEWEST, whole // SHARES[rung]))

    def error(self, one: Try, rung: int) -> float:
        """On held-back inputs after a trial; infinite where training diverged."""
        kind, steps = self._likeliest, self._steps(rung, self.steps)
        number = next(i for i, start in enumerate(self.starts) if start is one.start)
        key = (number, one.optimizer, one.rate, steps, kind)
        if key not in self.errors:
            self.job.progress(len(self.errors), max(len(self.errors) + 1, self._trials), f"try {one}{self._in_all()}")
            self.errors[key] = self._measured(one, steps, kind)
        return self.errors[key]

    def _measured(self, one: Try, steps: int, kind: str, share: float = 1.0) -> float:
        """After so many steps on a pool of a share of the samples."""
        settings = one.settings(self.job.settings, steps)
        student = student_of(one.start.program, one.start.supernet, self.job)
        parts = groups(student, one.start.supernet)
        before = [(p, p.detach().clone()) for group in parts for p in group.parameters]
        try:
            log = fit_labelled(student.module, parts, self._labels(student, one, kind, share), settings)
            held = self._labels(student, one, "held " + kind)
            held.measure(rows=None)
            begun = time.perf_counter()
            scores = score_labelled(student.module, held, settings)
            self.pace = Pace.of(log, time.perf_counter() - begun)
        except OptionError:
            return math.inf
        finally:
            with torch.no_grad():
                for parameter, value in before:
                    parameter.copy_(value)
        error = 1 - sum(w * s for w, s in zip(held.weights, scores, strict=True)) / sum(held.weights)
        return error if math.isfinite(error) else math.inf

    def _labels(self, student: Program, one: Try, kind: str, share: float = 1.0) -> Labels:
        """A pool with what the parents say of it, once for all trials."""
        if (kind, share) not in self.labelled:
            pool = self._pool(kind, share)
            job = replace(self.job, pool=pool)
            targets = targets_of(student, one.start.supernet, job)
            settings = replace(job.settings, memory=job.settings.memory // POOLS)
            self.labelled[kind, share] = self.stack.enter_context(labels_of(pool, targets, settings))
        return self.labelled[kind, share]

    def _pool(self, kind: str, share: float) -> Pool:
        pools, held = self.job.pools, kind.startswith("held ")
        if pools is None or not pools.triable:
            assert self.job.pool is not None
            return self.job.pool
        return pools.held() if held else pools.trial(kind, share)

    def _told(self) -> str:
        last = {(i, o, r): e for (i, o, r, _, _), e in self.errors.items()}
        return ", ".join(f"{self.starts[i].name} {o} {r:.2g} {e:.3f}" for (i, o, r), e in last.items())
