"""Carry merge and unmerge from activations to weights: the same function, one narrow network to run.

    merge([call(unmerge(x, U, k), W_k) for k], M)   -->   call(x, fold([W_1 … W_K], M, U))
    head(call(unmerge(x, U, k), W), k)              -->   call(x, fold([W], U))

Matrix products associate, so the fold happens inside autograd and only one network's activations are computed. Where
anything else stands between the maps and the calls, no weight can take the maps in, and the merge stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, Literal

from torch import Tensor, fx

from fxmerge.ir.maps import AxisMap
from fxmerge.ir.merge import SHAPES, Folds, Weight, fold, head, merge, unmerge
from fxmerge.ir.program import Origin, Program, prune
from passes.supernet.site import operands

Order = Literal["weights", "auto"]


def hoist(program: Program, order: Order = "weights", *, rows: int = 0, tails: bool = True) -> Program:
    """`program` with its merges done on weights: all of them, or ("auto") where that costs less at `rows` input rows.

    `tails=False` leaves the unmerge nodes before the tasks' own heads.
    """
    graph, _ = program.copy_graph()
    found = [
        site
        for node in graph.nodes
        if (site := _Site.of(node)) is not None
        and (tails or site.node.target is merge)
        and site.takes_its_maps(program.origins)
    ]
    if order == "auto":  # judged before any of it is rewritten, where every node still has its value
        found = [site for site in found if site.costs_less_on_weights(program.hints.get("batch", 1), rows)]
    hoister = _Hoister(graph)
    for site in found:
        hoister.rewrite(site)
    prune(graph)
    return program.evolve(graph=graph)


class _Site:
    """A merge or head node: the parents' calls behind it, and how their weights fold."""

    def __init__(self, node: fx.Node, calls: list[fx.Node], parents: list[int], folds: Folds) -> None:
        self.node, self.calls, self.parents, self.folds = node, calls, parents, folds
        self.call = calls[parents.index(folds.template) if folds.template in parents else 0]

    @classmethod
    def of(cls, node: fx.Node) -> _Site | None:
        args: tuple[Any, ...] = node.args
        if node.target is merge and len(args) > 4 and args[4] is not None:
            return cls(node, list(args[0]), list(args[3]), args[4])
        if node.target is head:
            return cls(node, [args[0]], [args[1]], args[2])
        return None

    def takes_its_maps(self, origins: Mapping[str, Origin]) -> bool:
        """Whether the calls read their own parents' weights, and one value through the very maps that fold."""
        folding = {node for weight in self.folds.weights for node in weight.maps if _unmerges(node)}
        places = {weight.position for weight in self.folds.weights}
        values: list[list[fx.Node]] = []
        for call, k in zip(self.calls, self.parents, strict=True):
            given = dict(enumerate(operands(call)))
            if not places <= given.keys() or any(_owner(given[i], origins) != k for i in places):
                return False
            data = [node for i, node in given.items() if i not in places]
            if {each for node in data for each in _maps_on(node, k)} != folding:
                return False
            values.append([_before_unmerge(node) for node in data])
        return all(each == values[0] for each in values)

    def costs_less_on_weights(self, hint: int, rows: int) -> bool:
        """Compare the multiplications of both orders at `rows` input rows."""
        value = self.node.meta["val"]
        positions = value.numel() / max(value.shape[-1], 1) * max(rows, 1) / hint
        side, weight, plain = 0.0, 0.0, 0.0
        for call in self.calls:
            for operand in operands(call):
                if operand.target is unmerge:
                    inner = operand.args[0].meta["val"]  # type: ignore[union-attr]
                    side += positions * inner.shape[-1] * operand.meta["val"].shape[-1]
            for position in (each.position for each in self.folds.weights):
                shape = operands(call)[position].meta["val"].shape
                merged = operands(self.call)[position].meta["val"].shape
                if len(shape) > 1:
                    side += positions * prod(shape)
                    weight += prod(shape) * merged[-1] + prod(merged) * shape[0]
                    plain = positions * prod(merged)
            if self.node.target is merge:
                side += positions * value.shape[-1] * call.meta["val"].shape[-1]
        return weight + plain <= side


class _Hoister:
    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.folded: dict[Any, fx.Node] = {}

    def rewrite(self, site: _Site) -> None:
        node, ours = site.node, operands(site.call)
        theirs = [operands(call) for call in site.calls]
        weights = {weight.position: weight for weight in site.folds.weights}
        with self.graph.inserting_before(node):
            replaced = {
                operand: self._weight(operand, [own[i] for own in theirs], weights[i], site.parents)
                if i in weights
                else _before_unmerge(operand)
                for i, operand in enumerate(ours)
            }
            new = self.graph.node_copy(site.call, lambda n: replaced.get(n, n))
        new.meta = {k: v for k, v in node.meta.items() if k in ("source", "val")} | {"by": "hoist"}
        node.replace_all_uses_with(new)
        self.graph.erase_node(node)

    def _weight(self, ours: fx.Node, theirs: list[fx.Node], weight: Weight, parents: list[int]) -> fx.Node:
        """The folded operand; a fold at the tensor itself is followed by the template's moves."""
        if not weight.maps and len(theirs) == 1:
            return ours
        if weight.at_root and ours.op != "get_attr":
            inner = next(n for n in ours.all_input_nodes if _is_own(n))
            below = [next(n for n in t.all_input_nodes if _is_own(n)) for t in theirs]
            root = self._weight(inner, below, weight, parents)
            return self.graph.node_copy(ours, lambda n: root if n is inner else n)
        key = (tuple(theirs), weight.axes, weight.maps, tuple(parents))
        if key not in self.folded:
            args = (theirs, list(weight.maps), list(weight.axes), parents)
            with self.graph.inserting_after(_last([*theirs, *weight.maps])):
                self.folded[key] = self.graph.call_function(fold, args)
            like, shape = SHAPES[fold](*fx.node.map_arg(args, lambda n: n.meta["val"]))
            self.folded[key].meta = {"by": "hoist", "val": like.new_empty(shape)}
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


def _owner(node: fx.Node, origins: Mapping[str, Origin]) -> int | None:
    """The parent whose tensor a value stems from, be it one of the parts that the tensor was split into."""
    while node.op == "call_function" and node.all_input_nodes:
        node = node.all_input_nodes[0]
    origin = origins.get(str(node.target))
    return origin.owner if origin is not None else None


def _unmerges(node: fx.Node) -> bool:
    return isinstance(found := node.meta["val"], AxisMap) and found.kind == "unmerge"


def _maps_on(node: fx.Node, k: int) -> list[fx.Node]:
    """The maps through which parent k sees a value, next to it."""
    found: list[fx.Node] = []
    while node.target is unmerge and node.args[3] == k:
        inner, axis_map = node.args[:2]
        assert isinstance(inner, fx.Node)
        assert isinstance(axis_map, fx.Node)
        found.append(axis_map)
        node = inner
    return found


def _before_unmerge(node: fx.Node) -> fx.Node:
    while node.target is unmerge:
        inner = node.args[0]
        assert isinstance(inner, fx.Node)
        node = inner
    return node
