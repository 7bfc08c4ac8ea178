"""A few legal inputs of a program, to compare what two programs make of them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fxmerge.ir.program import Port, Program
from fxmerge.ir.row_blocks import is_batch

ROWS = 3
"""More would cost time and show little: a program that computes something else does so on every row."""


def probe(
    program: Program, samples: Mapping[str, Tensor] | None = None, rows: int = ROWS, seed: int = 0
) -> dict[str, Tensor]:
    """The first samples (the program's own unless some are given), or random inputs for ports that have none.

    As many rows as a fixed batch has.
    """
    given = program.samples if samples is None else samples
    rows = program.rows or rows
    generator = torch.Generator().manual_seed(seed)
    return {
        port.name: _first(port, given[port.name], rows) if port.name in given else _random(port, program, generator)
        for port in program.inputs
    }


def _first(port: Port, sample: Tensor, rows: int) -> Tensor:
    if not port.shape or not is_batch(port.shape[0]):
        return sample
    return sample[:rows] if len(sample) >= rows else sample[torch.arange(rows) % len(sample)]


def _random(port: Port, program: Program, generator: torch.Generator) -> Tensor:
    """Random numbers; whole ones are 0 or 1, which is legal as token, mask and flag, and no row of a mask is empty."""
    shape = [program.hints[size] if isinstance(size, str) else size for size in port.shape]
    if port.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(port.dtype)
    whole = torch.randint(0, 2, shape, generator=generator)
    whole[..., :1] = 1
    return whole.to(port.dtype)
