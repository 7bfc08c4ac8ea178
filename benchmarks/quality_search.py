"""The best that `distill` can do in the time of another method, found on held-back unlabeled inputs alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from benchmarks.quality_case import Case, Data
from fxmerge.errors import FxmergeError, OptionError

STARTS: Mapping[str, float] = {"adamw": 6e-3, "muon": 2e-2}
"""Optimizers, and the peak learning rate that each is tried with first."""
LOWEST, HIGHEST = 1e-4, 0.5
HOPELESS = 1.3
"""A start whose first error is this many times the best one's is not tried at other rates."""
STEPS = 600
"""Where there is no other method whose time may be used."""
PART, FINALISTS = 4, 3
"""Everything is tried for one in so many of the steps, and so many pairs of start and optimizer for all of them."""
SHORT = (20, 80)
"""Steps of two short merges that tell what a step costs."""


def inits(parents: int) -> tuple[str, ...]:
    """What `distill` may start from."""
    return ("average", "first", *(f"parent{number}" for number in range(1, parents)), "condense")


@dataclass(frozen=True)
class Trial:
    """One merge and how far it was from the parents on inputs that it had not seen."""

    init: str
    optimizer: str
    lr: float
    steps: int
    part: int
    """It took one in so many of the steps there are."""
    error: float
    cpu_seconds: float


@dataclass
class Search:
    """A search over starts, optimizers and rates: all for a part of the time, the best of them for all of it.

    Rates are followed until those beside the best one are worse.
    """

    case: Case
    kept: Data
    held: Data
    seconds: float | None
    """Processor time that a merge may take."""
    trials: list[Trial] = field(default_factory=list)
    steps: dict[tuple[str, str], int] = field(default_factory=dict)

    def best(self) -> dict[str, Any]:
        """The options of the best trial of full length."""
        for optimizer, start in STARTS.items():
            rate = start
            for init in inits(len(self.case.studies)):
                self._climb(init, optimizer, rate, PART)
                tried = [t for t in self.trials if t.optimizer == optimizer]
                rate = min(tried, key=_error).lr if tried else start
        by_pair = [min(pair, key=_error) for pair in self._pairs().values()]
        finalists = sorted(by_pair, key=_error)[:FINALISTS]
        for each in finalists:
            self._error(each.init, each.optimizer, each.lr, 1)
        full = [t for t in self.trials if t.part == 1]
        if not full:
            raise OptionError("no way to train by distill is known to this version", "update fxmerge")
        leader = min(full, key=_error)
        self._climb(leader.init, leader.optimizer, leader.lr, 1)
        best = min((t for t in self.trials if t.part == 1), key=_error)
        return {"init": best.init, "optimizer": best.optimizer, "lr": best.lr, "steps": best.steps}

    def _pairs(self) -> dict[tuple[str, str], list[Trial]]:
        found: dict[tuple[str, str], list[Trial]] = {}
        for trial in self.trials:
            found.setdefault((trial.init, trial.optimizer), []).append(trial)
        return found

    def _climb(self, init: str, optimizer: str, rate: float, part: int) -> None:
        """Try rates half and twice as large until the best one has worse ones on both sides."""
        errors = {rate: self._error(init, optimizer, rate, part)}
        leader = min((t.error for t in self.trials if t.part == part), default=math.inf)
        if errors[rate] > HOPELESS * leader or math.isinf(leader):
            return
        while True:
            best = min(errors, key=lambda each: errors[each])
            beside = [r for r in (best / 2, best * 2) if r not in errors and LOWEST <= r <= HIGHEST]
            if not beside:
                return
            errors[beside[0]] = self._error(init, optimizer, beside[0], part)

    def _error(self, init: str, optimizer: str, rate: float, part: int) -> float:
        """Held-back error of a trial; infinite if it diverges, or if this version refuses it, which is said."""
        known = [t for t in self.trials if (t.init, t.optimizer, t.lr, t.part) == (init, optimizer, rate, part)]
        if known:
            return known[0].error
        what = f"distill from {init} by {optimizer}"
        try:
            steps = max(SHORT[0], self._affordable(init, optimizer) // part)
            options = {"init": init, "optimizer": optimizer, "lr": rate, "steps": steps}
            merged, seconds = self.case.merge(self.kept, 0, distill(options))
        except FxmergeError as error:
            print(f"  skipped: {what} at {rate:g}: {error.what}", flush=True)
            return math.inf
        found = self.case.distance(merged, self.held)
        print(f"  tried {what} at {rate:g}, {steps} steps, {seconds:.0f} s: error {found:.4f}", flush=True)
        self.trials.append(Trial(init, optimizer, rate, steps, part, found, seconds))
        return found

    def _affordable(self, init: str, optimizer: str) -> int:
        """Steps that fit into the seconds there are."""
        if self.seconds is None:
            return STEPS
        if (init, optimizer) not in self.steps:
            spent = []
            for steps in SHORT:
                options = {"init": init, "optimizer": optimizer, "lr": STARTS[optimizer] / 10, "steps": steps}
                spent.append(self.case.merge(self.kept, 0, distill(options))[1])
            step = max((spent[1] - spent[0]) / (SHORT[1] - SHORT[0]), 1e-4)
            self.steps[init, optimizer] = max(SHORT[0], int((self.seconds - spent[0]) / step) + SHORT[0])
        return self.steps[init, optimizer]


def distill(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a merge by distill."""
    return {"method": "distill", **options}


def held_back(data: Data) -> tuple[Data, Data]:
    """The inputs to merge with while searching, and a quarter to judge by; the same for both where there are few."""
    kept: dict[str, dict[str, Any]] = {}
    held: dict[str, dict[str, Any]] = {}
    for task, inputs in data.items():
        count = len(next(iter(inputs.values())))
        cut = count - max(2, count // 4)
        kept[task] = {name: x[:cut] if cut > 1 else x for name, x in inputs.items()}
        held[task] = {name: x[cut:] if cut > 1 else x for name, x in inputs.items()}
    return kept, held


def _error(trial: Trial) -> float:
    return trial.error
