"""Sizes that a model bounds without saying so: a table of positions has only so many rows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from fxmerge.capturing.sizes import LARGEST
from fxmerge.ir.program import Program
from fxmerge.ir.row_blocks import is_batch


def bounded(program: Program, sample: Mapping[str, Tensor]) -> Program:
    """The program with a range for every dynamic size at which it cannot run as large as the analysis would try it.

    A trace bounds a size by what shapes demand; which rows of a table exist is only seen when it is read.
    """
    ranges, notes = dict(program.ranges), list(program.notes)
    for name, size in program.hints.items():
        low, high = ranges.get(name, (2, LARGEST))
        if is_batch(name) or high < LARGEST or _runs(program, sample, name, size):
            continue
        works = _size_of(program, sample, name)
        if works is None or works >= size or not _runs(program, sample, name, works):
            continue
        fails = size
        while fails - works > 1:
            middle = (works + fails) // 2
            works, fails = (middle, fails) if _runs(program, sample, name, middle) else (works, middle)
        ranges[name] = (min(low, works), works)
        notes.append(f"{name}: at most {works}, the model runs at no more")
    if ranges == program.ranges:
        return program
    return program.evolve(ranges=ranges, hints={}, notes=tuple(notes))


def _size_of(program: Program, sample: Mapping[str, Tensor], name: str) -> int | None:
    """What a dynamic size is in the sample."""
    for port in program.inputs:
        if name in port.shape:
            return sample[port.name].shape[port.shape.index(name)]
    return None


def _runs(program: Program, sample: Mapping[str, Tensor], name: str, size: int) -> bool:
    """Whether the program runs on the sample, repeated or cut to a size."""
    given = {}
    for port in program.inputs:
        value = sample[port.name]
        for axis, own in enumerate(port.shape):
            if own == name:
                index = torch.arange(size, device=value.device) % max(value.shape[axis], 1)
                value = value.index_select(axis, index)
        given[port.name] = value
    try:
        with torch.no_grad():
            program.run(given)
    except (IndexError, RuntimeError):
        return False
    return True
