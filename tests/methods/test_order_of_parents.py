"""What is kept of a parent does not depend on whether it was given first, unless the start was named."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import fxmerge
from benchmarks.models import MLP

OPTIONS: dict[str, Any] = {"method": "foldable", "steps": 60, "augment": "none"}


def merged(order: tuple[int, ...], **options: Any) -> tuple[dict[str, Any], dict[str, float]]:
    torch.manual_seed(9)
    data = {task: torch.randn(120, 6) + shift for task, shift in (("a", 0.0), ("b", 0.5), ("c", -0.5))}
    programs = []
    for k in order:
        torch.manual_seed(k)
        programs.append(fxmerge.capture(MLP(6, (12, 10), 3).eval(), (data["a"][:4],), task="abc"[k]))
    data = {task: data[task] for task in ("abc"[k] for k in order)}
    result = fxmerge.merge(programs, data=data, **OPTIONS | options).result
    return result, {task["task"]: task["feature_r2"] for task in result["tasks"]}


def test_auto_forgets_the_order_that_a_named_parent_does_not() -> None:
    (one, kept), (other, turned) = merged((0, 1)), merged((1, 0))
    assert one["init"] == other["init"]
    assert turned == pytest.approx(kept, abs=0.03)
    note = next(note for note in one["notes"] if note.startswith("init "))
    assert all(f"{name} " in note for name in ("average", "first", "parent1", "permute", "condense"))
    (_, first), (_, last) = merged((0, 1), init="first"), merged((1, 0), init="first")
    assert first["a"] > last["a"] + 0.1


@pytest.mark.parametrize("orders", [((0, 1), (1, 0)), ((0, 1, 2), (2, 0, 1))])
def test_the_default_method_keeps_as_much_of_a_parent_wherever_it_stands(orders: tuple[tuple[int, ...], ...]) -> None:
    (one, kept), (other, turned) = (merged(order, method="auto", augment="auto") for order in orders)
    assert one["init"] == other["init"]
    assert turned == pytest.approx(kept, abs=0.03) and min(kept.values()) > 0.6


def test_maps_of_low_rank_try_what_they_can_hold() -> None:
    result, _ = merged((0, 1), rank=2)
    note = next(note for note in result["notes"] if note.startswith("init "))
    assert "permute" in note and "condense" not in note
