"""What is known of a mask: constants that depend on whether a key stands before, at or after its query.

A causal mask comes as a buffer cut to the length at hand, as `tril(ones)`, or as a comparison of positions. All of them
have three values: below the diagonal, on it and above. `banded` finds them, whatever the way they are computed.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.coupling import Call
from fxmerge.ir.program import Program, target_name
from passes.operators import OPERATORS
from passes.rewrites.common import called, is_tensor, rank, shape

MASKED = -1e4
"""A score lowered by this much, or more, has no weight beside one that is not (its exponential is zero)."""

ABSORBING = -1e30
"""A number this low swallows any score that is added to it."""

COMPARISONS = frozenset(f"aten.{name}.Tensor" for name in ("le", "lt", "ge", "gt", "eq", "ne"))
LEADING = frozenset({"aten.unsqueeze.default", "aten.expand.default", "aten.reshape.default"})
LINES = frozenset({"aten.unsqueeze.default", "aten.reshape.default", "aten._to_copy.default", "aten.permute.default"})
"""Operators behind which a vector is still that vector, along some axis."""

ROW, COLUMN = torch.tensor([1, 0, 0]), torch.tensor([0, 0, 1])
"""A query and a key position of which one is after, at or before the other."""


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


def is_causal(mask: Any, program: Program) -> bool:
    """Whether a mask hides exactly the keys after each query: true or zero up to the diagonal, false or low above."""
    found = banded(mask, program)
    if found is None:
        return False
    if found.dtype is torch.bool:
        return found.tolist() == [True, True, False]
    return found[:2].tolist() == [0, 0] and float(found[2]) <= MASKED


def every_query_sees_a_key(mask: Any, program: Program, *, hides: bool) -> bool:
    """Whether a boolean mask is known to let every query see a key: its own, on the diagonal."""
    found = banded(mask, program)
    return found is not None and bool(found[1]) is not hides and len(set(shape(mask)[-2:])) == 1


def banded(node: Any, program: Program) -> Tensor | None:
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
        return _of_triangle(name, call, program)
    if name in COMPARISONS and _is_grid(call["self"], call["other"]):
        sides = [ROW if _positions(call[side]) == "row" else COLUMN for side in ("self", "other")]
        result: Tensor = node.target(*sides)  # type: ignore[operator]
        return result
    if name == "aten.slice.Tensor" and call["start"] in (None, 0) and call["step"] == 1:
        return banded(call["self"], program)
    if name in LEADING and shape(call["self"])[-2:] == shape(node)[-2:]:
        return banded(call["self"], program)
    if name == "aten.select.int" and call.dim("dim", "self") < call.rank("self") - 2:
        return banded(call["self"], program)
    return _pointwise(node, program) if OPERATORS.pointwise(node) else None


def _of_buffer(node: fx.Node, program: Program) -> Tensor | None:
    """The three values of a buffer, checked entry by entry."""
    value = program.tensors.get(str(node.target))
    if node.target in program.parameters or value is None or value.ndim < 2 or value.device.type == "meta":
        return None
    if value.shape[-2] < 2 or value.shape[-1] < 2:
        return None
    found = torch.stack([value[..., 1, 0], value[..., 0, 0], value[..., 0, 1]]).reshape(3, -1)[:, 0]
    rows, columns = (torch.arange(n, device=value.device) for n in value.shape[-2:])
    side = (columns[None, :] - rows[:, None]).sign() + 1
    return found if bool((value == found[side]).all()) else None


def _of_triangle(name: str, call: Call, program: Program) -> Tensor | None:
    inner, diagonal = banded(call["self"], program), int(call["diagonal"])
    if inner is None:
        return None
    side = torch.tensor([-1, 0, 1])
    lower = name == "aten.tril.default"
    if diagonal not in ((0, -1) if lower else (0, 1)):
        return None
    kept = side <= diagonal if lower else side >= diagonal
    return torch.where(kept, inner, torch.zeros_like(inner))


def _positions(node: Any) -> str | None:
    """What a value counts 0, 1, 2 … along: its last axis but one ("row") or its last ("column")."""
    inner = node
    while called(inner, *LINES):
        inner = inner.args[0]
    if not (called(inner, "aten.arange.default") or (called(inner, "aten.arange.start") and inner.args[0] == 0)):
        return None
    places = [axis - rank(node) for axis, size in enumerate(shape(node)) if size != 1]
    return {-1: "column", -2: "row"}.get(places[0]) if len(places) == 1 else None


def _is_grid(a: Any, b: Any) -> bool:
    return {_positions(a), _positions(b)} == {"row", "column"}


def _pointwise(node: fx.Node, program: Program) -> Tensor | None:
    """An operator on the three values of its operands."""
    values: dict[fx.Node, Tensor] = {}
    for operand in node.all_input_nodes:
        single = number(operand, program)
        found = banded(operand, program) if single is None else torch.tensor([single] * 3)
        if found is None or (bool((found != found[0]).any()) and shape(operand)[-2:] != shape(node)[-2:]):
            return None
        values[operand] = found
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    result: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return result
