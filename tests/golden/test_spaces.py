"""How many spaces a network has. Fewer that move: something is coupled that need not be, which no number shows.

What is expected, and why, is written in `spaces.json`: all spaces longer than one, those that can at least be
permuted, and those that take any orthogonal or invertible map.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

import fxmerge
import passes
from benchmarks.examine import summary
from fxmerge.ir.program import Program
from tests.golden.nets import NETS

GOLDEN: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("spaces.json").read_text())


@pytest.fixture(scope="module")
def program(parents: Callable[[str, int], list[Program]]) -> Callable[[str], Program]:
    """A captured network by name."""

    @cache
    def get(name: str) -> Program:
        if name not in NETS:
            return parents(name, 1)[0]
        torch.manual_seed(5)
        model, inputs = NETS[name]()
        with torch.no_grad():
            for tensor in (*model.parameters(), *model.buffers()):
                if tensor.is_floating_point() and tensor.ndim == 1:
                    tensor.add_(0.1 * torch.rand_like(tensor))  # no scale is 1, no shift 0, statistics are lived in
        return fxmerge.capture(model.eval(), inputs, task=name)

    return get


@pytest.mark.parametrize("name", GOLDEN)
def test_spaces_are_as_many_as_argued(program: Callable[[str], Program], name: str) -> None:
    golden = {key: value for key, value in GOLDEN[name].items() if key != "why"}
    found = summary(program(name))
    assert {key: found[key] for key in golden} == golden, GOLDEN[name]["why"]
    assert found["coverage"] == 1.0


@pytest.mark.parametrize("name", NETS)
def test_what_is_said_to_move_moves(program: Callable[[str], Program], name: str) -> None:
    report = passes.check(program(name))
    assert report.ok, report


def test_every_network_has_its_figures() -> None:
    assert NETS.keys() <= GOLDEN.keys()
