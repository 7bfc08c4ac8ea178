"""Some rows of a pool, for what is solved and not trained."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fxmerge.training.pool import Pool

TOKENS, FEWEST = 32_000, 128
"""Of texts so many tokens, in this many rows at least: every token is a row of the regressions."""
CHUNK = 250
"""Inputs of a batch."""


def some(pool: Pool, rows: int, only: int | None) -> Iterator[tuple[Tensor, ...]]:
    """At most so many rows of a pool, from each of its tables its share, in chunks; fewer of long texts.

    Where a program takes one number of rows `only`, every chunk has that many.
    """
    longest = max((value.shape[1] for value in pool.tables[0].read(0) if _is_text(value)), default=1)
    rows = max(min(rows, FEWEST), min(rows, TOKENS // longest))
    for table in pool.tables:
        left = max(1, rows * table.rows // max(pool.rows, 1))
        for number in range(-(-table.rows // table.block)):
            if left <= 0:
                break
            for part in zip(*(torch.split(value, only or CHUNK) for value in table.read(number)), strict=True):
                if left > 0 and len(part[0]) >= (only or 1):
                    yield part if only else tuple(value[:left] for value in part)
                left -= len(part[0])


def _is_text(value: Tensor) -> bool:
    return value.ndim == 2 and not value.is_floating_point()
