"""A model whose sizes were taken as Python numbers (`len(x)`, `int(x.size(0))`), traced with these sizes dynamic.

The model is traced at several fixed sizes. Where the traces are alike but for whole numbers, each such number is
written as a polynomial of the sizes that gives it in every trace, and the result is traced once more, with the sizes
dynamic.

    view(h, [3, -1])  at 3 rows  |  view(h, [5, -1])  at 5 rows  -->  view(h, [x.size(0), -1])
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.fx.traceback import preserve_node_meta


@dataclass(frozen=True)
class Axis:
    """A size to follow: an input and its axis that have it, and two values to trace at."""

    input: str
    axis: int
    sizes: tuple[int, int]


def follow(
    export: Callable[[Mapping[str, Tensor]], ExportedProgram],
    resized: Callable[[Sequence[int]], dict[str, Tensor]],
    axes: Sequence[Axis],
) -> nn.Module | None:
    """A module whose numbers follow the sizes of `axes`; None if the traces differ in more than whole numbers.

    `resized` gives the inputs at one size for every axis, `export` traces the model on them.
    """
    corners = list(product(*(axis.sizes for axis in axes)))
    inputs = [resized(corner) for corner in corners]
    traces = [export(each) for each in inputs]
    if any(not _equal(trace.constants, traces[0].constants) for trace in traces[1:]):
        return None
    modules: list[Any] = [trace.module(check_guards=False) for trace in traces]
    nodes = [list(module.graph.nodes) for module in modules]
    if len({tuple((n.op, str(n.target)) for n in each) for each in nodes}) > 1:
        return None
    holders = dict(zip(inputs[0], (n for n in nodes[0] if n.op == "placeholder"), strict=True))
    numbers = _Numbers(modules[0].graph, [(holders[a.input], a.axis) for a in axes], corners)
    places = [{node: _Place(i) for i, node in enumerate(each)} for each in nodes]
    for same in zip(*nodes, strict=True):
        if same[0].op != "call_function":
            continue
        arguments = [
            fx.node.map_arg((n.args, n.kwargs), where.__getitem__)  # type: ignore[arg-type]
            for n, where in zip(same, places, strict=True)
        ]
        try:
            with modules[0].graph.inserting_before(same[0]):
                args, kwargs = numbers.of(arguments)
        except _Unlike:
            return None
        same[0].args, same[0].kwargs = fx.node.map_aggregate((args, kwargs), lambda a: _node(a, nodes[0]))
    modules[0].graph.lint()
    return _Replay(modules[0])


class _Unlike(Exception):
    """The traces differ in more than whole numbers."""


@dataclass(frozen=True)
class _Place:
    """Stands for the node at this place of a trace."""

    number: int


@dataclass
class _Numbers:
    """Writes values of several traces as one: numbers that differ become calls that compute them."""

    graph: fx.Graph
    holders: Sequence[tuple[fx.Node, int]]
    corners: Sequence[tuple[int, ...]]
    sizes: dict[int, fx.Node] = field(default_factory=dict)

    def of(self, values: Sequence[Any]) -> Any:
        first = values[0]
        if any(type(value) is not type(first) for value in values):
            raise _Unlike
        if isinstance(first, dict):
            if any(value.keys() != first.keys() for value in values):
                raise _Unlike
            return {key: self.of([value[key] for value in values]) for key in first}
        if isinstance(first, tuple | list):
            if any(len(value) != len(first) for value in values):
                raise _Unlike
            return type(first)(self.of(each) for each in zip(*values, strict=True))
        if all(value == first for value in values):
            return first
        if type(first) is not int:
            raise _Unlike
        return self._polynomial(values)

    def _polynomial(self, values: Sequence[int]) -> fx.Node:
        """A node for the polynomial, linear in each size, that has these values at the corners."""
        total: fx.Node | int = 0
        rest = dict(zip(self.corners, values, strict=True))
        for powers, number in _coefficients(rest):
            if number.denominator != 1:
                raise _Unlike
            term: fx.Node | int = int(number)
            for axis in powers:
                term = self.graph.call_function(operator.mul, (self._size(axis), term)) if term else 0
            if term != 0:
                total = term if total == 0 else self.graph.call_function(operator.add, (total, term))
        assert isinstance(total, fx.Node)
        return total

    def _size(self, axis: int) -> fx.Node:
        if axis not in self.sizes:
            holder, place = self.holders[axis]
            last = [n for n in self.graph.nodes if n.op == "placeholder"][-1]
            with self.graph.inserting_after(last):
                self.sizes[axis] = self.graph.call_method("size", (holder, place))
        return self.sizes[axis]


def _coefficients(values: Mapping[tuple[int, ...], int]) -> list[tuple[tuple[int, ...], Any]]:
    """(axes multiplied, coefficient) of the polynomial, linear in each size, through values at the corners of a box."""
    from fractions import Fraction

    found: dict[tuple[int, ...], Fraction] = {}
    corners = {corner: Fraction(value) for corner, value in values.items()}

    def split(corners: Mapping[tuple[int, ...], Fraction], axis: int, powers: tuple[int, ...]) -> None:
        if not any(len(corner) for corner in corners):
            [(_, value)] = corners.items()
            found[powers] = found.get(powers, Fraction(0)) + value
            return
        low, high = sorted({corner[0] for corner in corners})
        at_low = {corner[1:]: value for corner, value in corners.items() if corner[0] == low}
        at_high = {corner[1:]: value for corner, value in corners.items() if corner[0] == high}
        slope = {corner: (at_high[corner] - at_low[corner]) / (high - low) for corner in at_low}
        split({corner: at_low[corner] - slope[corner] * low for corner in at_low}, axis + 1, powers)
        split(slope, axis + 1, (*powers, axis))

    split(corners, 0, ())
    return list(found.items())


def _node(value: Any, nodes: Sequence[fx.Node]) -> Any:
    return nodes[value.number] if isinstance(value, _Place) else value


def _equal(left: Mapping[str, Any], right: Mapping[str, Any]) -> bool:
    return left.keys() == right.keys() and all(
        torch.equal(value, right[name]) if isinstance(value, Tensor) else value is right[name]
        for name, value in left.items()
    )


class _Replay(nn.Module):
    """Runs a rewritten graph, each call with the source line it came from."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__()
        self.traced = module

    def forward(self, *inputs: Tensor) -> Any:
        with preserve_node_meta():
            return fx.Interpreter(self.traced).run(*inputs)
