"""What several rewrites ask of a value."""

from __future__ import annotations

import math
from typing import Any, TypeGuard

from torch import Tensor, fx

from fxmerge.coupling import has_tensor
from fxmerge.ir.program import Program, target_name
from fxmerge.rewrite import Match
from passes.operators import OPERATORS, Operators

ROUNDING = 1e-7
"""Relative error of a constant that was written down in decimals or computed in single precision."""


def called(value: Any, *names: str) -> TypeGuard[fx.Node]:
    """Whether a value is a call of one of these operators."""
    return isinstance(value, fx.Node) and value.op == "call_function" and target_name(value.target) in names


def shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(int(size) for size in node.meta["val"].shape)


def rank(node: fx.Node) -> int:
    return int(node.meta["val"].ndim)


def is_tensor(value: Any) -> TypeGuard[fx.Node]:
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)


def is_number(value: Any) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def operators_of(match: Match) -> Operators:
    """The operators that are known where a rewrite runs."""
    return OPERATORS if match.rules is None else Operators(match.rules)


def is_tensor_of_program(value: Any, match: Match) -> bool:
    """Whether a value is a tensor of the program, at most turned or cast."""
    operators = operators_of(match)
    while isinstance(value, fx.Node) and (moved := operators.moved(value)) is not None and moved.turned is not None:
        value = moved.source
    return isinstance(value, fx.Node) and value.op == "get_attr"


def is_moved_tensor(value: Any) -> bool:
    """Whether a value depends on one tensor of the program and on nothing else but sizes."""
    while isinstance(value, fx.Node) and value.op == "call_function":
        operands = [node for node in value.all_input_nodes if has_tensor(node)]
        if len(operands) != 1:
            return False
        (value,) = operands
    return isinstance(value, fx.Node) and value.op == "get_attr"


def is_vector(value: Any, size: int, match: Match) -> bool:
    """Whether a value is a tensor of the program with one axis of the given size."""
    return is_tensor_of_program(value, match) and shape(value) == (size,)


def same_number(a: Any, b: float) -> bool:
    """Whether `a` is the number `b`, up to the rounding with which constants are written."""
    return is_number(a) and math.isclose(a, b, rel_tol=ROUNDING)


def axes_of(dims: Any, ranks: int) -> tuple[int, ...]:
    """An argument `dim` as non-negative axes, in order."""
    given = [dims] if isinstance(dims, int) else list(dims or [])
    return tuple(sorted(int(d) % ranks for d in given))


def trailing(node: fx.Node, dims: Any) -> int:
    """How many axes `dims` are if they are the last ones of `node`; 0 if they are not."""
    axes = axes_of(dims, rank(node))
    return len(axes) if axes == tuple(range(rank(node) - len(axes), rank(node))) else 0


def fixed(program: Program, size: int) -> bool:
    """Whether a size is the same for every input: it stands in a tensor or in the graph, and is no dynamic size."""
    return not program.hints or (size not in program.hints.values() and size in program.get(_written))


def _written(program: Program) -> frozenset[int]:
    found = {size for tensor in program.tensors.values() for size in tensor.shape}
    found |= {size for port in program.inputs for size in port.shape if isinstance(size, int)}
    for node in program.graph.nodes:
        fx.node.map_aggregate((node.args, node.kwargs), lambda a: found.add(a) if type(a) is int else None)
    return frozenset(found)
