"""Sizes measured at two choices of the dynamic sizes: which depend on the input, and how, can then be told."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations_with_replacement
from typing import Any

from torch import Tensor, fx

from fxmerge.ir.program import Program
from passes.line_up.carry_moves.moved_view import Size, divided

SYMBOLS = 3
"""A size is at most a product of this many dynamic ones and a number."""

CANDIDATES = (5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 3, 2)


def measure(program: Program) -> Mapping[fx.Node, Any]:
    """For every tensor the sizes of its axes, for every other value the value: at the program's hints and at others."""
    other = _at(program, other_hints(program)) if program.hints else {}
    found: dict[fx.Node, Any] = {}
    for node in program.graph.nodes:
        if node.op != "output":
            found[node] = _both(node.meta.get("val"), other.get(node, node.meta.get("val")))
    return found


def other_hints(program: Program) -> dict[str, int]:
    """Another choice of the dynamic sizes, where their ranges allow one."""
    taken = {n for tensor in program.tensors.values() for n in tensor.shape} | set(program.hints.values())
    chosen: dict[str, int] = {}
    steps: set[int] = set()
    for name, now in program.hints.items():
        low, high = program.ranges.get(name, (2, 1 << 30))
        fitting = [n for n in (*CANDIDATES, *range(max(low, 2), max(low, 2) + 64)) if low <= n <= high and n >= 2]
        free = [n for n in fitting if n not in taken and n not in chosen.values()]
        apart = [n for n in free if abs(n - now) not in steps]  # or sums and differences of sizes would not change
        chosen[name] = next(iter([*apart, *free, *(n for n in fitting if n != now)]), now)
        steps.add(abs(chosen[name] - now))
    return chosen


def _at(program: Program, hints: Mapping[str, int]) -> dict[fx.Node, Any]:
    """The fake values of all nodes at other sizes."""
    graph, where = program.copy_graph()
    program.evolve(graph=graph, hints=dict(hints))
    return {node: copy.meta.get("val") for node, copy in where.items()}


def _both(a: Any, b: Any) -> Any:
    if isinstance(a, Tensor):
        return tuple((int(m), int(n)) for m, n in zip(a.shape, b.shape, strict=True))
    if isinstance(a, tuple | list):
        return [_both(x, y) for x, y in zip(a, b, strict=True)]
    return a, b


@dataclass
class Sizes:
    """Sizes as arguments of calls in a new graph: numbers, or nodes that compute them from the dynamic sizes."""

    symbols: dict[Size, Callable[[], fx.Node]] = field(default_factory=dict)
    """How to compute the sizes that are no product of others."""
    _nodes: dict[Size, fx.Node] = field(default_factory=dict)

    def learn(self, size: Size, compute: Callable[[], fx.Node]) -> None:
        """Note how a size can be computed, unless that is known."""
        if size[0] != size[1] and self._product(size) is None:
            self.symbols[size] = compute

    def argument(self, size: Size, graph: fx.Graph) -> int | fx.Node | None:
        """A size as it stands in a call of `graph`; None if nothing computes it."""
        if size[0] == size[1]:
            return size[0]
        if size not in self._nodes:
            found = self._product(size)
            if found is None:
                return None
            number, symbols = found
            node = self._symbol(symbols[0])
            for symbol in symbols[1:]:
                node = graph.call_function(operator.mul, (node, self._symbol(symbol)))
            self._nodes[size] = node if number == 1 else graph.call_function(operator.mul, (node, number))
        return self._nodes[size]

    def _symbol(self, symbol: Size) -> fx.Node:
        if symbol not in self._nodes:
            self._nodes[symbol] = self.symbols[symbol]()
        return self._nodes[symbol]

    def _product(self, size: Size) -> tuple[int, tuple[Size, ...]] | None:
        """A size as a number times dynamic sizes."""
        for symbols in self._choices():
            rest: Size | None = size
            for symbol in symbols:
                rest = None if rest is None else divided(rest, symbol)
            if rest is not None and rest[0] == rest[1]:
                return rest[0], symbols
        return None

    def _choices(self) -> Iterator[tuple[Size, ...]]:
        for count in range(1, SYMBOLS + 1):
            yield from combinations_with_replacement(self.symbols, count)
