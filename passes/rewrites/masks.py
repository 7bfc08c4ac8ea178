"""What is known of a mask: constants that depend on whether a key stands before, at or after its query.

A causal mask comes as a buffer cut to the length at hand, as `tril(ones)`, or as a comparison of positions. All of them
have three values: below the diagonal, on it and above. `banded` finds them, whatever the way they are computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.coupling import Call
from fxmerge.ir.program import Program, target_name
from passes.operators import Operators
from passes.rewrites.common import called, is_tensor, rank, shape

MASKED = -1e4
"""A score lowered by this much, or more, has no weight beside one that is not (its exponential is zero)."""

ABSORBING = -1e30
"""A number this low swallows any score that is added to it."""

PLACES = torch.tensor([0, 1, 2, 3, 64, 65, 10**6, 10**6 + 1])
"""Positions near and far: what only asks which of two is greater says so of all of them."""


def number(value: Any, program: Program) -> float | None:
    """A number, or the one number in a constant without axes."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    if not is_tensor(value) or rank(value):
        return None
    if value.op == "get_attr" and value.target not in program.parameters:
        held = program.tensors.get(str(value.target))
        return None if held is None or held.device.type == "meta" else float(held)
    if called(value, "aten.full.default"):
        return number(value.args[1], program)
    if called(value, "aten._to_copy.default"):
        return number(value.args[0], program)
    for name, power in (("aten.sqrt.default", 0.5), ("aten.rsqrt.default", -0.5)):
        inner = number(value.args[0], program) if called(value, name) else None
        if inner is not None and inner > 0:
            return math.pow(inner, power)
    return None


def is_causal(mask: Any, program: Program, operators: Operators) -> bool:
    """Whether a mask hides exactly the keys after each query: true or zero up to the diagonal, false or low above."""
    found = banded(mask, program, operators)
    if found is None:
        return False
    if found.dtype is torch.bool:
        return found.tolist() == [True, True, False]
    return found[:2].tolist() == [0, 0] and float(found[2]) <= MASKED


def every_query_sees_a_key(mask: Any, program: Program, operators: Operators, *, hides: bool) -> bool:
    """Whether a boolean mask is known to let every query see a key: its own, on the diagonal."""
    found = banded(mask, program, operators)
    return found is not None and bool(found[1]) is not hides and len(set(shape(mask)[-2:])) == 1


def banded(node: Any, program: Program, operators: Operators) -> Tensor | None:
    """[below, on, above] the diagonal of the last two axes, if a constant depends on nothing else."""
    if isinstance(node, int | float):
        return torch.tensor([node] * 3)
    if not is_tensor(node):
        return None
    if node.op == "get_attr":
        return _of_buffer(node, program)
    if node.op != "call_function":
        return None
    name, call = target_name(node.target), Call.of(node)
    if name in ("aten.ones.default", "aten.new_ones.default", "aten.ones_like.default"):
        return torch.ones(3).to(node.meta["val"].dtype)
    if name in ("aten.zeros.default", "aten.new_zeros.default", "aten.zeros_like.default"):
        return torch.zeros(3).to(node.meta["val"].dtype)
    if name in ("aten.full.default", "aten.full_like.default", "aten.new_full.default"):
        return torch.tensor([call["fill_value"]] * 3).to(node.meta["val"].dtype)
    if name in ("aten.tril.default", "aten.triu.default"):
        return _of_triangle(name, call, banded(call["self"], program, operators))
    if operators.pointwise(node):
        found = _compared(node, operators)
        return found if found is not None else _pointwise(node, program, operators)
    moved = operators.moved(node)
    if moved is None or moved.cast or rank(moved.source) < 2:
        return None
    last = (rank(moved.source) - 2, rank(moved.source) - 1)
    return banded(moved.source, program, operators) if moved.places[-2:] == last else None


def _of_buffer(node: fx.Node, program: Program) -> Tensor | None:
    """The three values of a buffer, checked entry by entry."""
    value = program.tensors.get(str(node.target))
    if node.target in program.parameters or value is None or value.ndim < 2 or value.device.type == "meta":
        return None
    return _sides(value)


def _sides(value: Tensor) -> Tensor | None:
    """[below, on, above] the diagonal of the last two axes, if these are all that a tensor holds."""
    if value.shape[-2] < 2 or value.shape[-1] < 2:
        return None
    found = torch.stack([value[..., 1, 0], value[..., 0, 0], value[..., 0, 1]]).reshape(3, -1)[:, 0]
    rows, columns = (torch.arange(n, device=value.device) for n in value.shape[-2:])
    side = (columns[None, :] - rows[:, None]).sign() + 1
    return found if bool((value == found[side]).all()) else None


def _of_triangle(name: str, call: Call, inner: Tensor | None) -> Tensor | None:
    diagonal = int(call["diagonal"])
    if inner is None:
        return None
    side = torch.tensor([-1, 0, 1])
    lower = name == "aten.tril.default"
    if diagonal not in ((0, -1) if lower else (0, 1)):
        return None
    kept = side <= diagonal if lower else side >= diagonal
    return torch.where(kept, inner, torch.zeros_like(inner))


def _positions(node: fx.Node, operators: Operators) -> int | None:
    """The axis along which a value counts 0, 1, 2 …: its last but one (-2) or its last (-1)."""
    inner = node
    while (moved := operators.moved(inner)) is not None and (moved.reshaped or moved.turned is not None):
        inner = moved.source
    if not (called(inner, "aten.arange.default") or (called(inner, "aten.arange.start") and inner.args[0] == 0)):
        return None
    places = [axis - rank(node) for axis, size in enumerate(shape(node)) if size != 1]
    return places[0] if len(places) == 1 and places[0] >= -2 else None


def _compared(node: fx.Node, operators: Operators) -> Tensor | None:
    """A call that says no more of a query's and a key's position than which is greater."""
    axes = {operand: _positions(operand, operators) for operand in node.all_input_nodes}
    if len(axes) != 2 or set(axes.values()) != {-2, -1}:
        return None
    value = _run(node, {n: PLACES[:, None] if axis == -2 else PLACES[None, :] for n, axis in axes.items()})
    return None if value is None or value.shape != (len(PLACES), len(PLACES)) else _sides(value)


def _pointwise(node: fx.Node, program: Program, operators: Operators) -> Tensor | None:
    """An operator on the three values of its operands."""
    values: dict[fx.Node, Tensor] = {}
    for operand in node.all_input_nodes:
        single = number(operand, program)
        found = banded(operand, program, operators) if single is None else torch.tensor([single] * 3)
        if found is None or (bool((found != found[0]).any()) and shape(operand)[-2:] != shape(node)[-2:]):
            return None
        values[operand] = found
    return _run(node, values)


def _run(node: fx.Node, values: Mapping[fx.Node, Tensor]) -> Tensor | None:
    """A call on other operands; None if it does not take them."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    try:
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    except RuntimeError:  # an operator that has no code for these types, say
        return None
    return result if isinstance(result, Tensor) else None
