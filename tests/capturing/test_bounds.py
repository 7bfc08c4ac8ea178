"""A size that a table bounds is found at capture, and everything behind stays inside it."""

from __future__ import annotations

from pathlib import Path

import torch

import fxmerge
from benchmarks.models import GPT


def test_a_short_table_of_positions_bounds_the_sequence(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 9, (6, 4))
    parents = [
        fxmerge.capture(GPT(9, width=8, heads=2, hidden=10, depth=1, positions=9), (x,), task=task) for task in "ab"
    ]
    assert parents[0].ranges["sequence"][1] == 9
    assert any("sequence: at most 9" in note for note in parents[0].notes)
    assert fxmerge.check(parents[0]).ok
    merged = fxmerge.merge(parents, method="average", out=str(tmp_path / "m.onnx"))
    assert merged(torch.randint(0, 9, (2, 9)))["a"].shape == (2, 9, 9)


def test_a_long_table_bounds_nothing_that_is_tried() -> None:
    program = fxmerge.capture(GPT(9, width=8, heads=2, hidden=10, depth=1, positions=64), (torch.zeros(3, 4).long(),))
    assert not any("at most" in note for note in program.notes)
