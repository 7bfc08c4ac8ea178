"""Programs in float64: what runs beside them keeps its own precision."""

from __future__ import annotations

import torch
from torch import nn

import fxmerge
from fxmerge.ir.wide import values


def test_the_reader_of_a_walk_in_float64_keeps_its_default_dtype() -> None:
    program = fxmerge.capture(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), (torch.randn(5, 3),))
    walk = values(program, {n: t.double() for n, t in program.tensors.items()}, {"input": torch.randn(5, 3).double()})
    for _, value in walk:
        assert torch.get_default_dtype() == torch.float32
        assert value.dtype == torch.float64
        assert torch.is_grad_enabled()
    unfinished = values(program, dict(program.tensors), {"input": torch.randn(5, 3)})
    next(unfinished)
    assert torch.get_default_dtype() == torch.float32
