"""Rows of samples: how many, a few at a time, and which are held back."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from fxmerge.ir.program import Program

Samples = dict[str, Tensor]

HELD = 256
"""Samples of a task held back at most, to measure agreement on."""
ENOUGH = 64
"""With fewer samples of a task none is held back: training needs them more."""
CHUNK = 256
"""Rows run at a time at most."""
BYTES = 1 << 26
"""Inputs and outputs of the rows run at a time."""


def rows_of(samples: Mapping[str, Tensor]) -> int:
    """How many there are."""
    return max((value.shape[0] for value in samples.values() if value.ndim), default=0)


def split(samples: Sequence[Samples] | None) -> tuple[list[Samples] | None, list[Samples] | None]:
    """(held back, kept) of every task's samples: an eighth of them, of all tasks or of none."""
    if samples is None:
        return None, None
    if min(rows_of(s) for s in samples) < ENOUGH:
        return None, list(samples)
    held, kept = [], []
    for task in samples:
        count = min(HELD, rows_of(task) // 8)
        held.append({name: value[:count] for name, value in task.items()})
        kept.append({name: value[count:] for name, value in task.items()})
    return held, kept


def chunks(samples: Samples, size: int = CHUNK) -> list[Samples]:
    """The samples a few rows at a time."""
    return [{n: v[i : i + size] for n, v in samples.items()} for i in range(0, rows_of(samples), size)]


def rows_at_once(program: Program) -> int:
    """Rows of samples to run at a time: few where inputs or outputs are large."""
    numbers = (
        math.prod(size if isinstance(size, int) else program.hints.get(size, 1) for size in port.shape[1:])
        for port in (*program.inputs, *program.outputs)
    )
    return max(1, min(CHUNK, BYTES // (8 * max(1, sum(numbers)))))
