"""The default: starts are tried, the best is folded and trained, and what was chosen is said."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn

import fxmerge
from benchmarks.models import GPT
from fxmerge.errors import OptionError
from fxmerge.methods.clock import NO_TRIALS
from fxmerge.samples.pool import Pools
from tests.methods.test_condense import parent

SHORT: dict[str, Any] = {"steps": 24, "batch_size": 8, "pool": 64, "augment": "none"}


def two(family: str = "mlp") -> tuple[list[Any], dict[str, Any]]:
    both = [parent(family, seed, task) for seed, task in ((3, "a"), (4, "b"))]
    return [program for program, _ in both], {program.task: x for program, x in both}


def test_it_tries_starts_optimizers_and_rates_and_says_which_was_best() -> None:
    programs, data = two()
    result = fxmerge.merge(programs, data=data, **SHORT).result
    chosen = result["training"]["chosen"]
    assert result["method"] == "auto"
    assert result["init"] == chosen["start"]
    tried = {(t["start"], t["optimizer"]) for t in chosen["tried"]}
    starts = ("condense", "average", "first", "parent1")
    assert tried == {(start, optimizer) for start in starts for optimizer in ("muon", "adamw")}
    assert {round(t["lr"], 4) for t in chosen["tried"]} >= {0.001, 0.003}
    assert all(set(task["stages"]) == {result["init"], "polish"} for task in result["tasks"])
    assert result["training"]["steps"] == 24
    assert any(note.startswith("polish ") for note in result["notes"])


def test_whether_more_training_would_help_is_said() -> None:
    programs, data = two()
    notes = fxmerge.merge(programs, data=data, **SHORT | {"steps": 620, "init": "first", "optimizer": "adamw"}).result[
        "notes"
    ]
    assert any(note.startswith("more training would help") and "--steps 1240" in note for note in notes), notes


def test_what_is_named_is_not_searched() -> None:
    programs, data = two()
    named = {"init": "parent1", "optimizer": "adamw", "lr": 0.002}
    chosen = fxmerge.merge(programs, data=data, **SHORT, **named).result["training"]["chosen"]
    assert (chosen["start"], chosen["optimizer"], chosen["lr"], chosen["tried"]) == ("parent1", "adamw", 0.002, [])


def test_several_starts_may_be_named() -> None:
    programs, data = two()
    how = {**SHORT, "optimizer": "adamw", "lr": 0.002}
    tried = fxmerge.merge(programs, data=data, **how, init="average+parents").result["training"]["chosen"]["tried"]
    assert {t["start"] for t in tried} == {"average", "first", "parent1"}


def test_trials_leave_the_starts_as_they_were() -> None:
    programs, data = two()
    options = {**SHORT, "optimizer": "muon", "lr": 0.003}
    searched = fxmerge.merge(programs, data=data, **options)
    alone = fxmerge.merge(programs, data=data, **options, init=searched.result["init"])
    assert all(torch.equal(value, alone.state_dict()[name]) for name, value in searched.state_dict().items())


def test_a_start_that_is_exact_is_kept() -> None:
    program, x = parent("mlp", 3, "a")
    twin = dataclasses.replace(program, task="b")
    result = fxmerge.merge([program, twin], data={"a": x, "b": x}, **SHORT)
    assert any(note.startswith("the start is kept") for note in result.result["notes"])
    given = program.run(x)["logits"]
    assert all(torch.allclose(found, given, atol=1e-5) for found in result(*x.values()).values())


def test_without_polish_the_closed_form_is_the_result() -> None:
    programs, data = two()
    bare, condensed = (
        fxmerge.merge(programs, data=data, **how) for how in ({"polish": 0, "augment": "none"}, {"method": "condense"})
    )
    assert bare.result["init"] == "condense"
    assert bare.result["training"] == {}
    assert bare.state_dict().keys() == condensed.state_dict().keys()


def test_a_published_method_may_be_polished() -> None:
    programs, data = two()
    how = {**SHORT, "method": "foldable", "init": "average", "steps": 10}
    plain, polished = (fxmerge.merge(programs, data=data, **how, polish=n).result for n in (0, 30))
    assert set(polished["tasks"][0]["stages"]) == {"foldable", "polish"}
    assert plain["tasks"][0]["stages"] == {}
    assert sum(t["feature_r2"] for t in polished["tasks"]) > sum(t["feature_r2"] for t in plain["tasks"])


def test_a_budget_without_time_for_trials_trains_the_likeliest_start() -> None:
    programs, data = two()
    how = {name: value for name, value in SHORT.items() if name != "steps"}
    result = fxmerge.merge(programs, data=data, **how, budget=0.01).result
    assert result["init"] == "condense"
    assert len(result["training"]["chosen"]["tried"]) == 1
    assert any(NO_TRIALS in note for note in result["notes"])


def test_a_start_that_cannot_be_made_is_left_out_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, *given: Any) -> Any:
        raise ZeroDivisionError("no such luck")

    monkeypatch.setattr("fxmerge.methods.condense.Condense.start", broken)
    programs, data = two()
    result = fxmerge.merge(programs, data=data, **SHORT).result
    assert result["init"] in ("average", "first", "parent1")
    assert any("start condense could not be made" in note and "no such luck" in note for note in result["notes"])
    with pytest.raises(ZeroDivisionError):
        fxmerge.merge(programs, data=data, **SHORT, init="condense")


def test_parents_that_are_not_there_are_no_start() -> None:
    programs, data = two()
    with pytest.raises(OptionError, match="there is no parent7"):
        fxmerge.merge(programs, data=data, **SHORT, init="parent7")


def test_language_models_are_compared_by_distributions_and_write_their_own_text() -> None:
    both = []
    for seed, task in ((3, "a"), (4, "b")):
        torch.manual_seed(seed)
        model = GPT(20, width=12, heads=2, hidden=16, depth=1, positions=16)
        both.append(fxmerge.capture(model.eval(), (torch.randint(0, 20, (4, 9)),), task=task))
    data = {"a": torch.randint(0, 20, (12, 9)), "b": torch.randint(0, 20, (12, 9))}
    how = {**SHORT, "augment": "auto", "init": "first", "optimizer": "adamw", "lr": 0.01}
    result = fxmerge.merge(both, data=data, **how).result
    assert result["training"]["augmentation"]["kind"] in ("written", "tokens", "none")
    assert "written" in result["training"]["augmentation"]["tried"]
    assert result["training"]["loss_last"] < result["training"]["loss_first"]


def test_a_map_of_answers_is_compared_place_by_place() -> None:
    class Grid(nn.Module):
        def __init__(self, channels: int) -> None:
            super().__init__()
            self.body, self.head = nn.Conv2d(1, 6, 3, 2, 1), nn.Conv2d(6, channels, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.body(x)))

    x = torch.randn(24, 1, 8, 8)
    programs = [fxmerge.capture(Grid(3 + k).eval(), (x[:4],), task="ab"[k]) for k in range(2)]
    how = {**SHORT, "init": "average", "optimizer": "muon", "lr": 0.003}
    results = [fxmerge.merge(programs, data=x, **how, loss=loss).result for loss in ("auto", "features")]
    first = [r["training"]["loss_first"] for r in results]
    assert first[0] != pytest.approx(first[1], rel=1e-3), "another thing is compared"


def test_kinds_of_augmentation_are_tried_on_inputs_seen_as_often_as_in_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs as they are teach best when they are seen once: the run would show them again and again."""
    seen: list[tuple[str, float]] = []
    trial = Pools.trial
    monkeypatch.setattr(
        Pools, "trial", lambda self, kind, share: seen.append((kind, share)) or trial(self, kind, share)
    )
    programs, data = two()
    how = {"steps": 80, "batch_size": 8, "pool": 64, "init": "first", "optimizer": "adamw"}
    tried = fxmerge.merge(programs, data=data, **how).result["training"]["augmentation"]["tried"]
    assert len(tried) > 1
    assert {kind for kind, share in seen if share == 20 / 80} == set(tried)
    assert {share for _, share in seen} == {20 / 80, 1.0}, "rates are tried on all samples"
