"""Sizes between one model and all parents: chosen by size, by what is kept, and shown as a curve."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxmerge
from fxmerge.capturing import capture
from fxmerge.cli import report_page
from fxmerge.compiler import merging
from fxmerge.compiler.sizes import handful
from fxmerge.config import MergeConfig
from fxmerge.errors import OptionError
from fxmerge.ir.program import Program


class Deep(nn.Module):
    """(batch, 6) to 3 classes by residual blocks."""

    def __init__(self, seed: int, depth: int = 3, width: int = 10) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.stem = nn.Linear(6, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.head = nn.Linear(width, 3)
        with torch.no_grad():
            self.head.weight.mul_(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = x + torch.tanh(layer(x))
        return self.head(x)


@pytest.fixture(scope="module")
def programs() -> list[Program]:
    torch.manual_seed(0)
    x = torch.randn(100, 6)
    return [capture(Deep(seed), (x,), task=task) for seed, task in ((1, "a"), (2, "b"))]


def test_a_size_is_kept_to_and_the_choice_is_said(programs: list[Program]) -> None:
    merged = fxmerge.merge(programs, method="average", max_size=1.6)
    facts = merged.result["merged"]
    assert facts["size"] <= 1.6 and facts["apart"]
    assert facts["size"] == round(merged.program.count() / programs[0].count(), 4)
    points = {point["shared_until"]: point for point in merged.result["curve"]}
    assert {point["method"] for point in points.values()} == {"condense"}
    assert points[facts["shared_until"]]["error"] == min(point["error"] for point in points.values())
    assert any(note.startswith("--max-size 1.6: shared until") for note in merged.result["notes"])
    assert fxmerge.merge(programs, method="average", max_size=3.0).result["merged"]["shared_until"] == "input"


def test_maps_that_stay_as_matrices_count(programs: list[Program]) -> None:
    """What only the solved model has, the plan, whose maps are the identity, does not show."""

    def sizes(**how: Any) -> dict[str, float]:
        curve = fxmerge.merge(programs, method="condense", curve=True, **how).result["curve"]
        return {point["shared_until"]: point["size"] for point in curve}

    planned, made = sizes(dry_run=True), sizes()
    both = [(planned[place], size) for place, size in made.items() if size > planned[place]]
    assert both
    for few, many in both:
        merged = fxmerge.merge(programs, method="condense", max_size=(few + many) / 2).result
        assert merged["merged"]["size"] <= (few + many) / 2


def test_a_size_below_that_of_one_model_is_refused(programs: list[Program]) -> None:
    with pytest.raises(OptionError, match=r"--max-size 1: with all blocks shared the model has 1\.\d+ times"):
        fxmerge.merge(programs, method="average", max_size=1.0)


def test_the_smallest_model_that_keeps_enough(programs: list[Program]) -> None:
    curve = fxmerge.merge(programs, method="condense", curve=True).result["curve"]
    assert [point["size"] for point in curve] == sorted(point["size"] for point in curve)
    [nothing] = [point for point in curve if point["shared_until"] == "input"]
    assert nothing["kept"] == 1.0 and nothing["error"] < 1e-5
    inner = [point for point in curve if point is not nothing]
    wanted = sorted(point["kept"] for point in inner)[-1]
    first = next(point for point in inner if point["kept"] >= wanted)
    kept = fxmerge.merge(programs, method="condense", keep=wanted).result
    assert kept["merged"]["shared_until"] == first["shared_until"]
    if wanted < 1:
        more = fxmerge.merge(programs, method="condense", keep=(1 + wanted) / 2).result
        assert any("only parents that share nothing keep so much" in note for note in more["notes"])
        assert more["merged"]["shared_until"] == "input" and {task["agreement"] for task in more["tasks"]} == {1.0}


def test_what_no_shared_model_keeps_is_kept_apart() -> None:
    torch.manual_seed(0)
    x = torch.randn(60, 6)
    pair = [capture(Deep(seed), (x,), task=task) for seed, task in ((1, "a"), (2, "b"))]
    found = fxmerge.merge(pair, method="average", keep=1.0).result
    assert found["merged"]["shared_until"] == "input" and found["merged"]["size"] == 2.0
    assert min(task["agreement"] for task in found["tasks"]) == 1.0
    assert any("gives that one" in note for note in found["notes"])
    assert all(point["size"] <= 2.0 for point in found["curve"])


def test_sizes_are_told_without_a_step_of_training(programs: list[Program], monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[object] = []
    monkeypatch.setattr(merging, "estimate", lambda *given: made.append(given))
    fxmerge.merge(programs, method="distill", steps=3, max_size=1.9, dry_run=True)
    assert len(made) == 1


def test_a_dry_run_says_the_sizes(programs: list[Program]) -> None:
    plan = fxmerge.merge(programs, method="average", max_size=1.6, dry_run=True).result
    assert [p["size"] for p in plan["curve"]] and all(p["kept"] is None for p in plan["curve"])
    assert plan["merged"]["size"] <= 1.6 and plan["tasks"] == []


@pytest.mark.parametrize("other", [{"share_until": "0"}, {"keep": 0.5}])
def test_one_place_is_said_once(programs: list[Program], other: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="exclude each other"):
        fxmerge.merge(programs, method="average", max_size=1.5, **other)


def test_the_report_draws_the_curve(programs: list[Program]) -> None:
    merged = fxmerge.merge(programs, method="average", curve=True)
    page = report_page.html(merged.result, MergeConfig())
    assert page.count("<circle") == len(merged.result["curve"]) and "least kept of a task" in page


def test_a_handful_has_both_ends() -> None:
    names = [str(i) for i in range(25)]
    assert handful(names)[0] == "0" and handful(names)[-1] == "24" and len(handful(names)) == 6
    assert handful(names[:3]) == names[:3]
