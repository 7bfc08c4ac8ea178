"""One copy of the merged trunk: the template's graph with the parents' calls side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from torch import Tensor, fx

from fxmerge.ir.merge import Folds, Weight, fold, merge, unmerge
from fxmerge.ir.program import Program
from passes.supernet.site import Operand, Role, Site, operands
from passes.supernet.state import State


@dataclass
class Trunk:
    """The template's graph for all tasks, or for one.

    Parents that take the same inputs share one trunk. Otherwise every task has a copy of it behind its own stem, with
    the same weights and maps; `source` is then the task's own graph at the template's widths.
    """

    state: State
    source: Program
    literal: Mapping[fx.Node, fx.Node]
    """Node of `source` for every node of the template."""
    only: int | None = None
    """The task whose copy this is."""
    where: dict[fx.Node, fx.Node] = field(default_factory=dict)
    """The SuperNet's node for every node of the template's trunk."""
    copies: dict[Any, fx.Node] = field(default_factory=dict)
    """The SuperNet's node for nodes that only one parent has, and for calls that are made once."""

    @property
    def tasks(self) -> list[int]:
        """The parents that this copy serves."""
        return self.state.everyone if self.only is None else [self.only]

    def build(self, inputs: Sequence[fx.Node]) -> None:
        """Add the trunk's nodes to the SuperNet, reading these placeholders: one for every input of `source`."""
        first, sites = self.state.first, self.state.sites
        given = dict(zip(self.source.placeholders, inputs, strict=True))
        literal = {ours: self.literal[ours] for ours in first.placeholders if ours in self.literal}
        self.where.update((ours, given[theirs]) for ours, theirs in literal.items() if theirs in given)
        self.where.update((ours, self._size(theirs)) for ours, theirs in literal.items() if theirs not in given)
        for node in first.graph.nodes:
            if node.op in ("placeholder", "output") or node not in self.literal or node in sites.tail:
                continue
            if node in sites.sites:
                self.where[node] = self._site(sites.sites[node])
            elif sites.values[node] != "parameter" or self._needed_as_it_is(node):
                self.where[node] = self._copy_of_template(node)

    # -- calls in which parameters meet data ---------------------------------------------------------

    def _site(self, site: Site) -> fx.Node:
        folds = site.kind != "direct" and all(self._can_fold(o) for o in site.operands)
        simple = all(is_simple(o) for o in site.operands) and len(_written(site)) == 1
        if site.kind == "linear" and folds and simple:
            return self._side_by_side(site)
        values = {}
        for operand in site.operands:
            if not folds or not self.state.maps.has(operand):
                values[operand.node] = self._chain(operand, self.state.direct(operand.root))
            else:
                values[operand.node] = self._folded(operand)
        return self._copy(site.node, lambda n: values[n] if n in values else self.where[n])

    def _can_fold(self, operand: Operand) -> bool:
        """Whether the operand can become one tensor: at its root, or behind moves that no dynamic size changes."""
        return self._at_root(operand) or not operand.dynamic

    def _at_root(self, operand: Operand) -> bool:
        return operand.whole(axis for axis, _ in self.state.maps.of_operand(operand))

    def _side_by_side(self, site: Site) -> fx.Node:
        """unmerge, the call of every parent, merge."""
        values = []
        parents = self._writers_of(site)
        for k in parents:
            pairs = self.state.pairs[k]
            own = {pairs[o.node]: self.copy_of_parent(k, pairs[o.node]) for o in site.operands}
            for ours in operands(site.node):
                if pairs[ours] not in own:
                    own[pairs[ours]] = self.seen_by(k, ours, site)
            values.append(self._call_of(k, site, own))
        (axis,) = (a for a in _written(site) if a is not None)
        name = self.state.maps.written(site.node, axis)
        if len(parents) < len(self.state.parents):
            self.state.maps.stand_alone(name)
        axis_map = self.state.map(name)
        return self.state.call(merge, (values, axis_map, axis, parents, self.folds(site, ("write", "read"))), site.node)

    def _call_of(self, k: int, site: Site, own: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """Parent k's version of a call, on these operands."""
        return self.state.copy(self.state.pairs[k][site.node], lambda n: own[n] if n in own else self.size_for(k, n))

    def _writers_of(self, site: Site) -> list[int]:
        """The parents whose calls are merged: all; this task's own where the call reads the task's own input."""
        sites = self.state.sites
        reads_trunk = any(sites.merged_axes(n) for n in operands(site.node) if sites.values[n] != "parameter")
        return self.state.everyone if reads_trunk else self.tasks

    def folds(self, site: Site, roles: tuple[Role, ...]) -> Folds:
        """How the weights of a call fold, with the maps of these roles, when they are carried to the weights."""
        arguments, weights = operands(site.node), []
        for operand in site.operands:
            at_root = operand.whole(self.state.maps.axes(operand))
            maps = [
                (axis if at_root else operand.places[axis] or 0, self.state.map(name))
                for axis, name in self.state.maps.of_operand(operand, roles)
            ]
            axes, nodes = tuple(axis for axis, _ in maps), tuple(node for _, node in maps)
            weights.append(tuple(Weight(arguments.index(operand.node), at_root, axes, nodes)))
        return Folds(self.state.template, tuple(weights))

    def seen_by(self, k: int, node: fx.Node, site: Site | None = None) -> fx.Node:
        """A trunk value as parent k would see it: unmerged on the axes that the site reads, or on all without one."""
        axes = merged = self.state.sites.merged_axes(node)
        if site is not None:
            read = {u.axis for o in site.operands for u in o.uses if u and u.role == "read" and u.on is node}
            axes = tuple(a for a in axes if a in read)
        value = self.where[node]
        for axis in axes:
            axis_map = self.state.maps.read(node, axis)
            value = self._cached(unmerge, (value, self.state.map(axis_map), axis, k), node, self.copies)
        whole = bool(axes) and axes == merged  # where another axis stays merged, it is no value of the parent's
        if whole and site is not None and site.kind == "linear" and k in self.tasks:
            self.state.show(k, node, value, final=False)
        return value

    def _folded(self, operand: Operand) -> fx.Node:
        """The parents' tensors folded into one, for a parameter whose maps cannot stand on activations."""
        at_root, maps = self._at_root(operand), self.state.maps.of_operand(operand)
        theirs = self.state.root(operand) if at_root else operand.node
        parents = self.state.everyone if self.state.same_size(operand) else self.tasks
        own = [self.copy_of_parent(k, self.state.pairs[k][theirs]) for k in parents]
        names = [self.state.map(name) for _, name in maps]
        axes = [axis if at_root else operand.places[axis] for axis, _ in maps]
        value = self._cached(fold, (own, names, axes, parents), theirs, self.state.folded if at_root else self.copies)
        return self._chain(operand, value) if at_root else value

    def _chain(self, operand: Operand, value: fx.Node) -> fx.Node:
        """The template's moves between a tensor and the call that takes it, on `value`."""
        if operand.node.op == "get_attr":
            return value
        values = self.state.sites.values
        return self._copy(
            operand.node,
            lambda n: self._chain(replace(operand, node=n), value) if values[n] == "parameter" else self.where[n],
        )

    # -- copies of the parents' nodes ------------------------------------------------------------------

    def _copy_of_template(self, node: fx.Node) -> fx.Node:
        if node.op != "get_attr":
            return self._copy(node, lambda n: self.where[n])
        name = str(node.target)
        if self.state.maps.is_statistic(name):
            return self.state.direct(name)
        theirs = str(self.literal[node].target)
        return self.state.literal(name if self.only is None else theirs, self.only, self.source.tensors[theirs])

    def _copy(self, ours: fx.Node, of: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """A copy of a call of the template, with the sizes of this task's inputs spelt out in it."""
        return self.state.copy(self.literal[ours], lambda n: of(self._ours[n]) if n in self._ours else self._size(n))

    def _size(self, node: fx.Node) -> fx.Node:
        """A size, or a constant, that only this task's graph computes."""
        if node.op == "get_attr":
            return self.state.literal(str(node.target), self.only, self.source.tensors[str(node.target)])
        if ("size", node) not in self.copies:
            self.copies["size", node] = self.state.copy(
                node, lambda n: self.where[self._ours[n]] if self._ours.get(n) in self.where else self._size(n)
            )
        return self.copies["size", node]

    def copy_of_parent(self, k: int, theirs: fx.Node) -> fx.Node:
        """Parent k's tensor, or a value that it computes from its tensors by moves."""
        if (k, theirs) not in self.copies:
            if theirs.op == "get_attr":
                self.copies[k, theirs] = self.state.tensor_of(k, str(theirs.target))
            else:
                self.copies[k, theirs] = self.state.copy(
                    theirs, lambda n: self.copy_of_parent(k, n) if _is_tensor(n) else self.size_for(k, n)
                )
        return self.copies[k, theirs]

    def size_for(self, k: int, theirs: fx.Node) -> fx.Node:
        """A size that parent k computes, computed in the SuperNet."""
        ours = self.state.back[k].get(theirs)
        if ours in self.where:
            return self.where[ours]
        if (k, theirs) not in self.copies:
            self.copies[k, theirs] = self.state.copy(theirs, lambda n: self.size_for(k, n))
        return self.copies[k, theirs]

    @cached_property
    def _ours(self) -> dict[fx.Node, fx.Node]:
        """Node of the template for every node of this task's graph."""
        return {theirs: ours for ours, theirs in self.literal.items()}

    def _needed_as_it_is(self, node: fx.Node) -> bool:
        """Whether a parameter's value is asked for by its size only."""
        return any(self.state.sites.values[user] == "size" for user in node.users if user.op != "output")

    def _cached(self, target: Any, args: tuple[Any, ...], like: fx.Node, known: dict[Any, fx.Node]) -> fx.Node:
        """The node of this call, made once."""
        key = (target, repr(args))
        if key not in known:
            known[key] = self.state.call(target, args, like)
        return known[key]


def is_simple(operand: Operand) -> bool:
    """Whether the maps of the operand can stand on activations: each on one axis."""
    return all(use is None or use.axis is not None for use in operand.uses)


def _written(site: Site) -> set[int | None]:
    """The axes of its result that a call writes; a merge node takes one, weights of more are folded as they are."""
    return {u.axis for o in site.operands for u in o.uses if u is not None and u.role == "write"}


def _is_tensor(node: fx.Node) -> bool:
    """Whether a node is a tensor, or several (the parts of one that was split)."""
    return isinstance(node.meta.get("val"), Tensor | tuple | list)
