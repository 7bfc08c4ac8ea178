"""A budget of seconds: what fits into it, and methods that keep to it."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxmerge
from fxmerge.methods.clock import FEWEST, NO_TRIALS, SPARED, TRIED, Clock, Pace
from fxmerge.methods.inits import find_init
from fxmerge.methods.trial import _Trial
from fxmerge.training.pool import Pool
from fxmerge.training.settings import Log, Settings
from tests.methods.test_auto import SHORT, two

PACE = Pace.of(Log((1.0,) * 10, seconds=5.0, label_seconds=2.0, samples_per_second=1.0, labelled=100), look=3.0)


def test_a_run_costs_its_steps_and_the_rows_that_it_reads_first() -> None:
    pool, settings = Pool.of([torch.zeros(50, 2)]), Settings(batch_size=10)
    assert PACE.run(3, pool, settings) == pytest.approx(3 * 0.5 + 30 * 0.02)
    assert PACE.run(300, pool, settings) == pytest.approx(300 * 0.5 + 50 * 0.02)
    assert PACE.compared(pool) == pytest.approx(2 * 3 + 50 * 0.02)
    assert PACE.trial(4) == pytest.approx(4 * 0.5 + 3)


def test_as_many_steps_as_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxmerge.methods.clock.time.perf_counter", lambda: 100.0)
    clock = Clock.of(50.0)
    most = clock.most(lambda steps: 7 + 0.1 * steps)
    assert 7 + 0.1 * most <= SPARED * 50 < 7 + 0.1 * (most + 1)
    assert clock.most(lambda steps: 60.0) == FEWEST


def test_trials_are_left_out_where_they_would_take_most_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxmerge.methods.clock.time.perf_counter", lambda: 100.0)
    clock = Clock.of(50.0)
    run = lambda steps: 0.1 * steps  # noqa: E731
    assert clock.plan(run, lambda steps: 1.01 * TRIED * 50) == (clock.most(run), False)
    assert clock.plan(run, lambda steps: 0.1 * steps) == (clock.most(lambda steps: 0.2 * steps), True)


@pytest.fixture
def still(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that does not go on, and steps of one second: what a budget has time for is the same on every machine."""
    monkeypatch.setattr(Clock, "of", lambda seconds: Clock(seconds))
    monkeypatch.setattr(Clock, "left", property(lambda self: self.until))
    monkeypatch.setattr(Pace, "of", lambda log, look: Pace(1.0, 0.0, 0.0))


@pytest.mark.usefixtures("still")
@pytest.mark.parametrize("method", ["foldable", "distill"])
def test_trained_methods_keep_to_a_budget(method: str) -> None:
    programs, data = two()
    how: dict[str, Any] = {**{k: v for k, v in SHORT.items() if k != "steps"}, "method": method}
    none = fxmerge.merge(programs, data=data, **how, budget=50.0).result
    assert none["training"]["steps"] == int(SPARED * 50)
    assert any(NO_TRIALS in note for note in none["notes"])
    some = fxmerge.merge(programs, data=data, **how, budget=600.0).result
    assert 50 < some["training"]["steps"] <= SPARED * 600
    assert not any(NO_TRIALS in note for note in some["notes"])


@pytest.mark.usefixtures("still")
def test_the_default_trains_as_long_as_its_budget_allows() -> None:
    programs, data = two()
    how: dict[str, Any] = {**{k: v for k, v in SHORT.items() if k != "steps"}, "init": "average", "optimizer": "muon"}
    few, many = (fxmerge.merge(programs, data=data, **how, budget=seconds).result for seconds in (100.0, 1500.0))
    assert any(NO_TRIALS in note for note in few["notes"])
    assert few["training"]["steps"] == int(SPARED * 100)
    assert few["training"]["steps"] < many["training"]["steps"] <= SPARED * 1500
    assert not any(NO_TRIALS in note for note in many["notes"])


@pytest.mark.parametrize("method", ["foldable", "distill"])
def test_a_start_is_made_once_and_every_trial_begins_with_it(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    measured, made = _Trial._measured, list[str]()

    def twice(self: _Trial, init: str, pool: Any, held: Any) -> float:
        first, second = measured(self, init, pool, held), measured(self, init, pool, held)
        assert first == second
        return first

    def find(name: str) -> Any:
        made.append(name)
        return find_init(name)

    monkeypatch.setattr(_Trial, "_measured", twice)
    monkeypatch.setattr("fxmerge.methods.trial.find_init", find)
    programs, data = two()
    result = fxmerge.merge(programs, data=data, **{**SHORT, "augment": "auto"}, method=method).result
    assert sorted(made) == sorted([*{*made}, result["init"]])
    assert len(made) == 6
