"""The best that `distill` can do in the time of another method, found on held-back unlabeled inputs alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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
SHORT = (20, 80)
"""Steps of two short merges that tell what a step costs."""


def inits(parents: int) -> tuple[str, ...]:
    """What `distill` may start from."""
    return ("average", "first", *(f"parent{number}" for number in range(1, parents)), "condense")


@dataclass
class Search:
    """A search over starts, optimizers and rates; every rate is followed until those beside it are worse."""

    case: Case
    kept: Data
    held: Data
    seconds: float | None
    """Processor time that a merge may take."""
    trials: list[dict[str, Any]] = field(default_factory=list)
    steps: dict[tuple[str, str | None], int] = field(default_factory=dict)

    def best(self) -> dict[str, Any]:
        """The options of the best trial."""
        for optimizer, start in STARTS.items():
            rate = start
            for init in inits(len(self.case.studies)):
                self._climb(init, optimizer, rate)
                tried = [t for t in self.trials if t["optimizer"] == optimizer]
                rate = min(tried, key=_error)["lr"] if tried else start
        if not self.trials:
            raise OptionError("no way to train by distill is known to this version", "update fxmerge")
        best = min(self.trials, key=_error)
        return {name: best[name] for name in ("init", "optimizer", "lr", "steps")}

    def _climb(self, init: str, optimizer: str, rate: float) -> None:
        """Try rates twice and half as large until the best one has worse ones on both sides."""
        errors = {rate: self._error(init, optimizer, rate)}
        leader = min((t["error"] for t in self.trials), default=math.inf)
        if errors[rate] is None or (errors[rate] or 0.0) > HOPELESS * leader:
            return
        while True:
            best = min(errors, key=lambda each: errors[each] or math.inf)
            beside = [r for r in (best / 2, best * 2) if r not in errors and LOWEST <= r <= HIGHEST]
            if not beside:
                return
            errors |= {each: self._error(init, optimizer, each) for each in beside[:1]}

    def _error(self, init: str, optimizer: str, rate: float) -> float | None:
        """Held-back error of one trial; None if this version refuses it, infinite if it diverges."""
        options = {"init": init, "optimizer": optimizer}
        try:
            steps = self._affordable(init, optimizer)
            merged, seconds = self.case.merge(self.kept, 0, distill({**options, "lr": rate, "steps": steps}))
        except OptionError as error:
            if "diverged" not in error.what:
                print(f"  skipped: distill from {init} by {optimizer}: {error.what}", flush=True)
                return None
            found, seconds = math.inf, math.nan
        except FxmergeError as error:
            print(f"  failed: distill from {init} by {optimizer} at {rate:g}: {error.what}", flush=True)
            return None
        else:
            found = self.case.distance(merged, self.held)
        self.trials.append({**options, "lr": rate, "steps": steps, "error": found, "cpu_seconds": seconds})
        print(f"  tried {init}, {optimizer}, {rate:g}, {steps} steps: held-back error {found:.4f}", flush=True)
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


def _error(trial: Mapping[str, Any]) -> float:
    error: float = trial["error"]
    return error


def tried(search: Search) -> Sequence[Mapping[str, Any]]:
    """All trials, those that diverged without an error, as JSON has no infinity."""
    return [{k: v for k, v in t.items() if not isinstance(v, float) or math.isfinite(v)} for t in search.trials]
