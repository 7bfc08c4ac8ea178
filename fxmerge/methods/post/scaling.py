"""Which weights scale the scores of an output: found by running its calls on values that are twice as large.

    z = linear(x, W, b)   -->   2z = linear(x, 2W, 2b)           W and b
    y = log_softmax(z)    -->   nothing makes it 2y, but z twice as large makes what 2y says: look for what scales z

So no operator needs to be known by name.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.ir.program import Program
from fxmerge.methods.walk import Values

TRIED = 4
"""Rows of inputs that calls are run on."""
TWICE = 2.0
"""A power of two: no digit changes."""
CLOSE = 1e-4
FEW = 4
"""Of more operands than this (parts that are stacked, say) not every choice is tried."""


def scaling(program: Program, inputs: Mapping[str, Tensor], axis: int) -> frozenset[str]:
    """The tensors that, all times β, make softmax(β · scores) of the program's one output; none where there are none.

    `axis` is that of the classes.
    """
    few = {name: value[: program.rows or TRIED] for name, value in inputs.items()}
    return _Search(program, few, axis).found()


class _Search:
    def __init__(self, program: Program, inputs: Mapping[str, Tensor], axis: int) -> None:
        (self.result,) = program.result
        self.program, self.axis = program, axis
        self.values = Values(program, [inputs], program.graph.nodes)
        self.values.of(self.result)
        self.known: dict[fx.Node, frozenset[str]] = {}
        self.fixed: set[fx.Node] = set()
        """The tensors of the program, and what is made of such alone."""
        for node in program.graph.nodes:  # in order: a deep network has longer paths than Python can recurse along
            made = bool(node.all_input_nodes) and all(n in self.fixed for n in node.all_input_nodes)
            if node.op == "get_attr" or made:
                self.fixed.add(node)

    def found(self) -> frozenset[str]:
        """Tensors that scale the output, or the value from which it alone is made."""
        chain = [self.result]
        while True:
            if self._says(chain) and (found := self._of(chain[-1])):
                return found
            read = [n for n in self._operands(chain[-1]) if n not in self.fixed]
            if len(read) != 1:
                return frozenset()
            chain.append(read[0])

    def _says(self, chain: list[fx.Node]) -> bool:
        """Whether a value twice as large at the end of the chain is what the output times two says."""
        last = _twice(self._value(chain[-1]))
        for before, call in zip(reversed(chain), reversed(chain[:-1]), strict=False):
            last = self._run(call, {before: last})
        says, then = (log_probabilities(value, self.axis) for value in (self._value(self.result), last))
        return bool(torch.allclose(torch.log_softmax(TWICE * says, self.axis), then, atol=CLOSE, rtol=CLOSE))

    def _of(self, node: fx.Node) -> frozenset[str]:
        """The tensors that scale a value."""
        if node not in self.known:
            self.known[node] = self._searched(node)
        return self.known[node]

    def _searched(self, node: fx.Node) -> frozenset[str]:
        if node.op == "get_attr":
            return frozenset([str(node.target)])
        if node.op != "call_function":
            return frozenset()
        read = self._operands(node)
        weights = [n for n in read if n in self.fixed]
        for subset in (*subsets(weights), *subsets(read)):
            if self._scales(node, subset) and all(self._of(n) for n in subset):
                return frozenset().union(*(self._of(n) for n in subset))
        return frozenset()

    def _scales(self, node: fx.Node, operands: tuple[fx.Node, ...]) -> bool:
        """Whether these operands twice as large make the result so."""
        wanted = _twice(self._value(node))
        try:
            found = self._run(node, {n: _twice(self._value(n)) for n in operands})
        except (RuntimeError, TypeError):
            return False
        pairs = zip(*(value if isinstance(value, tuple | list) else (value,) for value in (wanted, found)), strict=True)
        return all(
            a.shape == b.shape and bool(torch.allclose(a, b, rtol=CLOSE, atol=CLOSE * float(a.abs().max())))
            for a, b in pairs
            if isinstance(a, Tensor) and a.numel()
        )

    def _operands(self, node: fx.Node) -> list[fx.Node]:
        return [n for n in node.all_input_nodes if _twice(self._value(n)) is not None]

    def _value(self, node: fx.Node) -> Any:
        return self.values.of(node)[0]

    @torch.no_grad()
    def _run(self, node: fx.Node, instead: Mapping[fx.Node, Any]) -> Any:
        return self.values.value(node, 0, instead)


def subsets(operands: Sequence[fx.Node]) -> Iterator[tuple[fx.Node, ...]]:
    """Some of the operands, the fewest first: every choice of a few; of many each alone, and all together."""
    count = len(operands)
    sizes = range(1, count + 1) if count <= FEW else (1, count)
    return (each for size in sizes for each in combinations(operands, size))


def log_probabilities(value: Tensor, axis: int) -> Tensor:
    """What scores of any kind say, in float64: probabilities are taken as such, other scores as logits."""
    value = value.detach().double()
    sums = value.sum(axis)
    share = bool((value >= 0).all()) and bool(torch.allclose(sums, torch.ones_like(sums), atol=1e-4))
    return torch.log_softmax(value.clamp_min(1e-30).log() if share else value, axis)


def _twice(value: Any) -> Any:
    """Numbers twice as large; None for what holds none."""
    if isinstance(value, Tensor):
        return value * TWICE if value.is_floating_point() else None
    if isinstance(value, tuple | list) and value and isinstance(value[0], Tensor):
        return [_twice(each) if _twice(each) is not None else each for each in value]
    return None
