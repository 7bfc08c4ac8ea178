"""Trace operators at sizes that are left open although their own implementation runs a loop over one of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch._decomp import decomposition_table
from torch._ops import OpOverload

Empty = Callable[..., Any]
"""Takes an operator's arguments and returns tensors of the sizes of its results; what they hold is not read."""


@contextmanager
def open_sizes(known: Mapping[OpOverload, Empty]) -> Iterator[None]:
    """Inside, tracing asks for the sizes of these operators' results instead of looking how they are computed."""
    with ExitStack() as stack:
        for operator, empty in known.items():
            stack.enter_context(_as(operator, empty))
        yield


@contextmanager
def _as(operator: OpOverload, empty: Empty) -> Iterator[None]:
    """An operator with another Python implementation, in both tables in which tracing looks for one."""
    key = torch._C.DispatchKey.CompositeImplicitAutograd
    tables: list[tuple[Any, Any]] = [(operator.py_kernels, key), (decomposition_table, operator)]
    before = [table.get(entry) for table, entry in tables]
    for table, entry in tables:
        table[entry] = empty
    operator._dispatch_cache.clear()
    try:
        yield
    finally:
        for (table, entry), old in zip(tables, before, strict=True):
            if old is None:
                del table[entry]
            else:
                table[entry] = old
        operator._dispatch_cache.clear()
