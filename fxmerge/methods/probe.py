"""What a call does with an operand, found by running it on random values: no operator needs to be known by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx


def sums(call: fx.Node, part: fx.Node) -> bool:
    """Whether a call adds `part` to its other operands: what it gives, less what it gives without, is `part`."""
    given = _given(call)
    whole, without = _run(call, given), _run(call, {**given, part: torch.zeros_like(given[part])})
    return whole.shape == given[part].shape and bool(torch.allclose(whole - without, given[part]))


def multiplies(tensor: fx.Node) -> bool:
    """Whether a tensor scales what its first call gives along the last axis: zeros in its place leave no data there."""
    call = next(iter(tensor.users))
    given = _given(call)
    found = _run(call, {**given, tensor: torch.zeros_like(given[tensor])})
    rows = found.reshape(-1, found.shape[-1])
    return bool(((rows - rows[:1]).abs() < 1e-9).all())


def matrix_of(call: fx.Node, data: fx.Node, given: Mapping[fx.Node, Any]) -> Tensor | None:
    """The matrix (out × in) that a call multiplies the last axis of `data` with; None if it does anything else."""
    value = given[data]
    eye = torch.eye(value.shape[-1], dtype=value.dtype)
    try:
        with torch.no_grad():
            rows = _run(call, {**given, data: eye}) - _run(call, {**given, data: torch.zeros_like(eye)})
            whole = _run(call, given) - _run(call, {**given, data: torch.zeros_like(value)})
    except (RuntimeError, ValueError, TypeError):
        return None
    if rows.ndim != 2 or len(rows) != len(eye) or whole.shape[:-1] != value.shape[:-1]:
        return None
    return rows.T.double() if torch.allclose(value @ rows, whole, atol=1e-4, rtol=1e-4) else None


def _given(call: fx.Node) -> dict[fx.Node, Any]:
    generator = torch.Generator().manual_seed(0)
    found: dict[fx.Node, Any] = {}
    for node in call.all_input_nodes:
        value = node.meta["val"]
        if isinstance(value, Tensor):
            found[node] = torch.randn(value.shape, generator=generator, dtype=torch.float64)
        else:
            found[node] = value
    return found


def _run(call: fx.Node, given: Mapping[fx.Node, Any]) -> Tensor:
    args, kwargs = fx.node.map_arg((call.args, call.kwargs), lambda node: given[node])
    target: Any = call.target
    result: Tensor = target(*args, **kwargs)
    return result
