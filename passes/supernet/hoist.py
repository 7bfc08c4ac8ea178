"""Carry merge and unmerge from activations to weights: the same function, one narrow network to run.

    merge([call(unmerge(x, U, k), W_k) for k], M)   -->   call(x, fold([W_1 … W_K], M, U))

Matrix products associate, so the fold happens inside autograd and only one network's activations are computed.
"""

from __future__ import annotations

from math import prod
from typing import Any, Literal

from torch import Tensor, fx

from fxmerge.ir.merge import fold, merge, unmerge
from fxmerge.ir.program import Program, prune
from fxmerge.ir.supernet import Folds
from passes.supernet.sites import operands

Order = Literal["weights", "auto"]


def hoist(program: Program, order: Order = "weights", *, rows: int = 0, tails: bool = True) -> Program:
    """`program` with its merges done on weights: all of them, or ("auto") where that costs less at `rows` input rows.

    `tails=False` leaves the unmerge nodes before the tasks' own heads.
    """
    graph, where = program.copy_graph()
    hoister = _Hoister(graph, {where[n]: n for n in program.graph.nodes})
    for node in list(graph.nodes):
        folds: Folds | None = node.meta.get("folds")
        if folds is None or (not tails and node.target is not merge):
            continue
        if order == "auto" and not _weights_cost_less(node, folds, program, rows):
            continue
        hoister.rewrite(node, folds)
    prune(graph)
    return program.evolve(graph=graph)


class _Hoister:
    def __init__(self, graph: fx.Graph, _: Any) -> None:
        self.graph = graph
        self.folded: dict[Any, fx.Node] = {}
        self.attributes = {n.target: n for n in graph.nodes if n.op == "get_attr"}

    def rewrite(self, node: fx.Node, folds: Folds) -> None:
        merged = node.target is merge
        calls = list(node.args[0]) if merged else [node]  # type: ignore[arg-type]
        call = calls[folds.parents.index(folds.template) if folds.template in folds.parents else 0]
        own = {k: operands(c) for k, c in zip(folds.parents, calls, strict=True)}
        with self.graph.inserting_before(node):
            replaced: dict[fx.Node, fx.Node] = {}
            for position, ours in enumerate(operands(call)):
                if position in folds.operands:
                    at_root, maps = folds.operands[position]
                    theirs = [own[k][position] for k in folds.parents]
                    replaced[ours] = self._weight(ours, theirs, at_root, maps, folds.parents)
                else:
                    replaced[ours] = _before_unmerge(ours)
            new = self.graph.node_copy(call, lambda n: replaced.get(n, n))
        new.meta = {k: v for k, v in node.meta.items() if k == "source"} | {"by": "hoist"}
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)

    def _weight(
        self, ours: fx.Node, theirs: list[fx.Node], at_root: bool, maps: Any, parents: tuple[int, ...]
    ) -> fx.Node:
        """The folded operand; a fold at the tensor itself is followed by the template's moves."""
        if not maps and len(theirs) == 1:
            return ours
        if at_root and ours.op != "get_attr":
            inner = next(n for n in ours.all_input_nodes if _is_own(n))
            below = [next(n for n in t.all_input_nodes if _is_own(n)) for t in theirs]
            weight = self._weight(inner, below, at_root, maps, parents)
            return self.graph.node_copy(ours, lambda n: weight if n is inner else n)
        key = (tuple(theirs), maps, parents)
        if key not in self.folded:
            names = [self.attributes[name] for _, name in maps]
            args = (theirs, names, [axis for axis, _ in maps], list(parents))
            first = next(iter(self.graph.nodes))
            late = [*theirs, *names]
            with self.graph.inserting_after(_last(late) if late else first):
                self.folded[key] = self.graph.call_function(fold, args)
            self.folded[key].meta = {"by": "hoist"}
        return self.folded[key]


def _last(nodes: list[fx.Node]) -> fx.Node:
    """The one of `nodes` that stands last in its graph."""
    last = nodes[0]
    for node in nodes[1:]:
        last = node if last < node else last
    return last


def _is_own(node: fx.Node) -> bool:
    """Whether a value stems from a parent's tensor by moves alone (sizes aside)."""
    while node.op == "call_function" and isinstance(node.meta.get("val"), Tensor) and node.all_input_nodes:
        node = node.all_input_nodes[0]
    return node.op == "get_attr"


def _before_unmerge(node: fx.Node) -> fx.Node:
    while node.target is unmerge:
        inner = node.args[0]
        assert isinstance(inner, fx.Node)
        node = inner
    return node


def _weights_cost_less(node: fx.Node, folds: Folds, program: Program, rows: int) -> bool:
    """Compare the multiplications of both orders at `rows` input rows."""
    value = node.meta["val"]
    hint = program.hints.get("batch", 1)
    calls = list(node.args[0]) if node.target is merge else [node]  # type: ignore[arg-type]
    template = calls[folds.parents.index(folds.template) if folds.template in folds.parents else 0]
    positions = value.numel() / max(value.shape[-1], 1) * max(rows, 1) / hint
    side, weight, plain = 0.0, 0.0, 0.0
    for call in calls:
        for operand in operands(call):
            if operand.target is unmerge:
                inner = operand.args[0].meta["val"]  # type: ignore[union-attr]
                side += positions * inner.shape[-1] * operand.meta["val"].shape[-1]
        for position in folds.operands:
            shape = operands(call)[position].meta["val"].shape
            merged = operands(template)[position].meta["val"].shape
            if len(shape) > 1:
                side += positions * prod(shape)
                weight += prod(shape) * merged[-1] + prod(merged) * shape[0]
                plain = positions * prod(merged)
        side += positions * value.shape[-1] * call.meta["val"].shape[-1] if node.target is merge else 0.0
    return weight + plain <= side
