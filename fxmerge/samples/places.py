"""Integers that belong where they stand: columns of a table, of which each has a range of its own.

    categories     4 in one column, 7 in the next     they stay in their column
    tokens         any of them anywhere               rows are cropped, joined, and cut anew

No value tells for sure which it is. So the models are asked: they run with the largest number of all samples in every
place, and with the smallest, or they do not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fxmerge.ir.program import Port, Program
from fxmerge.ir.supernet import SuperNet

Samples = Mapping[str, Tensor]


def columns(supernet: SuperNet, samples: Sequence[Samples]) -> frozenset[str]:
    """The inputs, by the SuperNet's names, whose integers some parent does not take in another place.

    `samples` are every parent's, by its own names.
    """
    given = [supernet.given(k, own) for k, own in enumerate(samples)]
    found = set()
    for k, parent in enumerate(supernet.parents):
        shown = given if supernet.together else [given[k]]
        for name, port in zip(supernet.inputs[k], parent.inputs, strict=True):
            if _is_table(port) and not _anywhere(parent, port, samples[k], [own[name] for own in shown]):
                found.add(name)
    return frozenset(found)


def _is_table(port: Port) -> bool:
    """Whether an input is rows of integers."""
    whole = not port.dtype.is_floating_point and not port.dtype.is_complex and port.dtype is not torch.bool
    return whole and len(port.shape) == 2 and port.shape[1] != 1


@torch.no_grad()
def _anywhere(parent: Program, port: Port, samples: Samples, shown: Sequence[Tensor]) -> bool:
    """Whether a parent runs with every number that is `shown` in any place of an input."""
    count = parent.rows or 2
    rows = torch.arange(count) % len(samples[port.name])
    few = {each.name: samples[each.name][rows].to(each.dtype) for each in parent.inputs}
    for number in (max(int(value.max()) for value in shown), min(int(value.min()) for value in shown)):
        try:
            parent.run({**few, port.name: torch.full_like(few[port.name], number)})
        except (IndexError, RuntimeError):  # a table without such a row, a one-hot code without such a class
            return False
    return True
