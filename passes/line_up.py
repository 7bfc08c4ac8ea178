"""Pair the nodes of two parents that do the same thing, whatever their sizes."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from torch import Tensor, fx

from fxmerge.errors import LineUpError
from fxmerge.ir.program import Program, target_name

COMMUTATIVE = frozenset({"aten.add.Tensor", "aten.mul.Tensor", "operator.add", "operator.mul"})


def line_up(template: Program, other: Program) -> Mapping[fx.Node, fx.Node]:
    """Node of `other` for every node of `template` that an output needs.

    Both graphs are walked together from their outputs. Operators, the positions of their operands and the ranks of
    their values must agree; sizes may differ. Raises `LineUpError` at the first place, in the order of computation,
    where they part.
    """
    pairs = _Pairs(template, other)
    if len(template.outputs) != len(other.outputs):
        raise LineUpError(
            f"{template.task} has {len(template.outputs)} outputs and {other.task} has {len(other.outputs)}",
            "merge models with the same outputs",
        )
    for a, b in zip(template.result, other.result, strict=True):
        pairs.match(a, b)
    return pairs.found


class _Pairs:
    """The walk: an explicit stack, because a deep model is deeper than Python's recursion limit."""

    def __init__(self, template: Program, other: Program) -> None:
        self.template, self.other = template, other
        self.found: dict[fx.Node, fx.Node] = {}
        self.inputs = dict(zip(template.placeholders, other.placeholders, strict=False))
        self.order_a = {n: i for i, n in enumerate(template.graph.nodes)}

    def match(self, a: fx.Node, b: fx.Node) -> None:
        todo = [(a, b, False)]
        while todo:
            a, b, operands_done = todo.pop()
            if operands_done or a in self.found:
                if self.found.setdefault(a, b) is not b:
                    self._part(a, b, "is used in two places of one and one place of the other")
                continue
            self._compare(a, b)
            todo.append((a, b, True))
            todo.extend((x, y, False) for x, y in reversed(self._operands(a, b)))

    def _compare(self, a: fx.Node, b: fx.Node) -> None:
        if a.op != b.op or (a.op == "call_function" and a.target != b.target):
            self._part(a, b, "are different operators")
        if a.op == "placeholder" and self.inputs.get(a) is not b:
            self._part(a, b, "are different inputs")
        left, right = a.meta.get("val"), b.meta.get("val")
        if isinstance(left, Tensor) and isinstance(right, Tensor):
            if left.ndim != right.ndim:
                self._part(a, b, f"have {left.ndim} and {right.ndim} axes")
            if left.is_floating_point() != right.is_floating_point():
                self._part(a, b, f"are {left.dtype} and {right.dtype}")

    def _operands(self, a: fx.Node, b: fx.Node) -> list[tuple[fx.Node, fx.Node]]:
        operands: list[tuple[fx.Node, fx.Node]] = []
        left, right = (a.args, a.kwargs), (b.args, b.kwargs)
        if a.op == "call_function" and target_name(a.target) in COMMUTATIVE and self._crossed(a, b):
            right = ((b.args[1], b.args[0], *b.args[2:]), b.kwargs)
        if not _same_form(left, right, operands):
            self._part(a, b, "have different arguments")
        return operands

    def _crossed(self, a: fx.Node, b: fx.Node) -> bool:
        """Whether the operands of a commutative call stand in the other order in `b`."""
        pair, other = a.args[:2], b.args[:2]
        if not all(isinstance(n, fx.Node) for n in (*pair, *other)):
            return isinstance(pair[0], fx.Node) != isinstance(other[0], fx.Node)
        straight = sum(_alike(x, y) for x, y in zip(pair, other, strict=True))
        return sum(_alike(x, y) for x, y in zip(pair, reversed(other), strict=True)) > straight

    def _part(self, a: fx.Node, b: fx.Node, how: str) -> None:
        raise LineUpError(
            f"{self.template.task} and {self.other.task} do not line up: {_place(a)} and {_place(b)} {how}",
            "merge models of one structure (sizes may differ, depth and operators may not)",
        )


def _same_form(a: Any, b: Any, operands: list[tuple[fx.Node, fx.Node]]) -> bool:
    """Whether two argument structures agree but for sizes; collects the pairs of nodes in them."""
    if isinstance(a, fx.Node) or isinstance(b, fx.Node):
        if isinstance(a, fx.Node) and isinstance(b, fx.Node):
            operands.append((a, b))
            return True
        return _is_size(a) and _is_size(b)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(_same_form(x, y, operands) for x, y in zip_longest(a, b))
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return a.keys() == b.keys() and all(_same_form(a[k], b[k], operands) for k in a)
    if isinstance(a, int | float) and isinstance(b, int | float):
        return isinstance(a, bool) == isinstance(b, bool) and (not isinstance(a, bool) or a == b)
    return bool(a == b)


def _is_size(value: Any) -> bool:
    return isinstance(value, int) or (isinstance(value, fx.Node) and not isinstance(value.meta.get("val"), Tensor))


def _alike(a: Any, b: Any) -> float:
    """How much two operands look alike, a few levels deep: only to tell the two orders of a sum apart."""

    def score(x: Any, y: Any, depth: int) -> float:
        if not (isinstance(x, fx.Node) and isinstance(y, fx.Node)):
            return float(type(x) is type(y))
        if x.op != y.op or (x.op == "call_function" and x.target is not y.target):
            return 0.0
        if depth == 0 or x.target is operator.getitem:
            return 1.0
        inner = [score(p, q, depth - 1) for p, q in zip(x.all_input_nodes, y.all_input_nodes, strict=False)]
        return 1.0 + (sum(inner) / len(inner) if inner else 0.0)

    return score(a, b, 4)


def _place(node: fx.Node) -> str:
    what = node.target if node.op != "call_function" else target_name(node.target)
    source = node.meta.get("source")
    return f"{what}" + (f" ({source})" if source else "")
