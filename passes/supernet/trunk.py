"""One copy of the merged trunk with its heads: the part of insert-merge that builds nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from fxmerge.ir.merge import fold, merge, unmerge
from fxmerge.ir.program import Port, Program
from fxmerge.ir.supernet import Feature, Folds
from passes.supernet.maps import Maps
from passes.supernet.sites import Operand, Site, Sites, operands

if TYPE_CHECKING:
    from passes.supernet.insert_merge import Net


@dataclass
class Trunk:
    """The template's graph with the parents' calls side by side, for all tasks or for one.

    Parents that take the same inputs share one trunk. Otherwise every task has a copy of it behind its own stem, with
    the same weights and maps; `source` is then the task's own graph at the template's widths, `literal` its nodes.
    """

    net: Net
    source: Program
    literal: Mapping[fx.Node, fx.Node]
    """Node of `source` for every node of the template."""
    only: int | None = None
    where: dict[fx.Node, fx.Node] = field(default_factory=dict)
    copies: dict[Any, fx.Node] = field(default_factory=dict)

    @property
    def first(self) -> Program:
        return self.net.first

    @property
    def parents(self) -> tuple[Program, ...]:
        return self.net.parents

    @property
    def pairs(self) -> Sequence[Mapping[fx.Node, fx.Node]]:
        return self.net.pairs

    @property
    def sites(self) -> Sites:
        return self.net.sites

    @property
    def maps(self) -> Maps:
        return self.net.maps

    def build(self, inputs: Sequence[fx.Node]) -> None:
        """Add the trunk's nodes to the net, reading these placeholders."""
        self.where.update(zip(self.first.placeholders, inputs, strict=True))
        for node in self.first.graph.nodes:
            if node.op in ("placeholder", "output") or node not in self.literal or node in self.sites.tail:
                continue
            if node in self.sites.sites:
                self.where[node] = self._trunk_site(self.sites.sites[node])
            elif self.sites.values[node] != "parameter" or self._needed_as_it_is(node):
                self.where[node] = self._copy_of_template(node)

    # -- trunk ---------------------------------------------------------------------------------------

    def _trunk_site(self, site: Site) -> fx.Node:
        """The merged form of a call in which parameters meet data."""
        folds = site.kind != "direct" and all(self._can_fold(o) for o in site.operands)
        simple = all(self._simple(o) for o in site.operands) and len(_written(site)) == 1
        if site.kind == "linear" and folds and simple:
            return self._side_by_side(site)
        values = {}
        for operand in site.operands:
            if not folds or not self.maps.has(operand):
                values[operand.node] = self._chain(operand, self.net.direct(operand.root))
            else:
                values[operand.node] = self._folded(operand)
        return self._copy(site.node, lambda n: values[n] if n in values else self.where[n])

    def _simple(self, operand: Operand) -> bool:
        """Whether the maps of the operand can stand on activations: each on one axis."""
        return all(use is None or use.axis is not None for use in operand.uses)

    def _can_fold(self, operand: Operand) -> bool:
        """Whether the operand can become one tensor: at its root, or behind moves that no dynamic size changes."""
        return self._at_root(operand) or not operand.dynamic

    def _at_root(self, operand: Operand) -> bool:
        return operand.whole(axis for axis, _ in self.maps.of_operand(operand))

    def _side_by_side(self, site: Site) -> fx.Node:
        """unmerge, the call of every parent, merge."""
        values = []
        parents = self._writers_of(site)
        for k in parents:
            pairs = self.pairs[k]
            call = pairs[site.node]
            own = {pairs[o.node]: self._copy_of_parent(k, pairs[o.node]) for o in site.operands}
            for ours in operands(site.node):
                if pairs[ours] not in own:
                    own[pairs[ours]] = self._seen_by(k, ours, site)
            values.append(self._make(call, lambda n, k=k, own=own: own[n] if n in own else self._size_for(k, n)))
        (axis,) = (a for a in _written(site) if a is not None)
        axis_map = self.net.map(self.maps.written(site.node, axis))
        result = self._call(merge, (values, axis_map, axis, parents), site.node)
        result.meta["folds"] = self._folds(site, parents, ("write", "read"))
        return result

    def _writers_of(self, site: Site) -> list[int]:
        """The parents whose calls are merged: all; this task's own where the call reads the task's own input."""
        reads_trunk = any(self.sites.merged_axes(n) for n in operands(site.node) if self.sites.values[n] != "parameter")
        return self.everyone if self.only is None or reads_trunk else [self.only]

    @property
    def everyone(self) -> list[int]:
        return list(range(len(self.parents)))

    def _folds(self, site: Site, parents: list[int], roles: tuple[str, ...]) -> Folds:
        """How the weights of a call are folded, for the pass that hoists it."""
        how: dict[int, tuple[bool, tuple[tuple[int, str], ...]]] = {}
        arguments = operands(site.node)
        for operand in site.operands:
            at_root = self._at_root(operand)
            maps = [
                (axis if at_root else operand.places[axis] or 0, name)
                for axis, name in self.maps.of_operand(operand)
                if operand.uses[axis] is not None and operand.uses[axis].role in roles  # type: ignore[union-attr]
            ]
            for _, name in maps:
                self.net.map(name)
            how[arguments.index(operand.node)] = (at_root, tuple(maps))
        return Folds(self.net.template, tuple(parents), how)

    def _seen_by(self, k: int, node: fx.Node, site: Site | None = None) -> fx.Node:
        """A trunk value as parent k would see it: unmerged on the axes that the site reads, or on all without one."""
        axes = self.sites.merged_axes(node)
        if site is not None:
            read = {u.axis for o in site.operands for u in o.uses if u and u.role == "read" and u.on is node}
            axes = tuple(a for a in axes if a in read)
        value = self.where[node]
        for axis in axes:
            axis_map = self.maps.read(node, axis)
            value = self._cached(unmerge, (value, self.net.map(axis_map), axis, k), node)
        if axes and site is not None and site.kind == "linear":
            self._feature(k, node, value, final=False)
        return value

    def _folded(self, operand: Operand) -> fx.Node:
        """The parents' tensors folded into one, for a parameter whose maps cannot stand on activations."""
        at_root, maps = self._at_root(operand), self.maps.of_operand(operand)
        theirs = self.net.root(operand) if at_root else operand.node
        parents = self.everyone if self.net.same_size(operand) else [self.only]
        own = [self._copy_of_parent(k, self.pairs[k][theirs]) for k in parents]  # type: ignore[index, arg-type]
        names = [self.net.map(name) for _, name in maps]
        axes = [axis if at_root else operand.places[axis] for axis, _ in maps]
        value = self._cached(fold, (own, names, axes, parents), theirs, self.net.folded if at_root else self.copies)
        return self._chain(operand, value) if at_root else value

    def _chain(self, operand: Operand, value: fx.Node) -> fx.Node:
        """The template's moves between a tensor and the call that takes it, on `value`."""
        if operand.node.op == "get_attr":
            return value
        return self._copy(
            operand.node,
            lambda n: (
                self._chain(replace(operand, node=n), value) if self.sites.values[n] == "parameter" else self.where[n]
            ),
        )

    # -- tails ---------------------------------------------------------------------------------------

    def results(self) -> Iterator[tuple[Port, fx.Node]]:
        """The outputs of the tasks that this copy of the trunk serves."""
        for k in self.everyone if self.only is None else [self.only]:
            parent = self.parents[k]
            for port, ours in zip(parent.outputs, self.first.result, strict=True):
                shape = self.net.named(k, port.shape)
                yield Port(f"{parent.task}.{port.name}", shape, port.dtype), self._tail(k, ours)

    def _tail(self, k: int, ours: fx.Node) -> fx.Node:
        """Parent k's own version of a value at or after its head; what comes from the trunk is unmerged."""
        theirs = self.pairs[k][ours]
        if (k, theirs) in self.copies:
            return self.copies[k, theirs]
        if ours not in self.sites.tail:
            node = self._crossing(k, ours)
        else:
            for needed in self._tail_order(ours):
                if (k, self.pairs[k][needed]) not in self.copies:
                    call = self.pairs[k][needed]
                    self.copies[k, call] = self._tail_call(k, needed)
            node = self.copies[k, theirs]
        self.copies[k, theirs] = node
        return node

    def _tail_call(self, k: int, ours: fx.Node) -> fx.Node:
        node = self._make(self.pairs[k][ours], lambda n: self._tail_operand(k, n))
        site = self.sites.sites.get(ours)
        if site is not None and site.kind == "linear" and all(self._simple(o) for o in site.operands):
            reads = {(u.on, u.axis) for o in site.operands for u in o.uses if u is not None and u.role == "read"}
            unmerged = {
                (n, axis)
                for n in operands(ours)
                if n not in self.sites.tail and self.sites.values[n] != "parameter"
                for axis in self.sites.merged_axes(n)
            }
            if unmerged and unmerged <= reads:
                node.meta["folds"] = self._folds(site, [k], ("read",))
        return node

    def _tail_order(self, last: fx.Node) -> list[fx.Node]:
        """Tail nodes that `last` needs, in the template's order."""
        needed, todo = {last}, [last]
        while todo:
            for node in todo.pop().all_input_nodes:
                if node in self.sites.tail and node not in needed:
                    needed.add(node)
                    todo.append(node)
        return [n for n in self.first.graph.nodes if n in needed]

    def _tail_operand(self, k: int, theirs: fx.Node) -> fx.Node:
        if (k, theirs) in self.copies:
            return self.copies[k, theirs]
        ours = self._back[k].get(theirs)
        if ours is not None and self.sites.values[ours] == "parameter":
            return self._copy_of_parent(k, theirs)
        if ours is None or self.sites.values[ours] == "size":
            return self._size_for(k, theirs)
        return self._crossing(k, ours)

    def _crossing(self, k: int, ours: fx.Node) -> fx.Node:
        value = self._seen_by(k, ours)
        if self.sites.merged_axes(ours):
            self._feature(k, ours, value, final=True)
        return value

    def _feature(self, k: int, ours: fx.Node, value: fx.Node, *, final: bool) -> None:
        if self.only not in (None, k):
            return  # parent k never saw this task's inputs
        theirs = self.pairs[k][ours]
        known = self.net.features.get((k, theirs))
        if known is not None:
            if final and not known.final:
                self.net.features[k, theirs] = Feature(k, known.port, theirs, True)
            return
        port = f"{self.parents[k].task}/{len(self.net.features)}"
        self.net.features[k, theirs] = Feature(k, port, theirs, final)
        self.net.feature_nodes[port] = value

    # -- copying nodes -------------------------------------------------------------------------------

    def _copy_of_template(self, node: fx.Node) -> fx.Node:
        if node.op != "get_attr":
            return self._copy(node, lambda n: self.where[n])
        name = str(node.target)
        if self.maps.is_statistic(name):
            return self.net.direct(name)
        theirs = str(self.literal[node].target)
        own = name if self.only is None else f"{self.parents[self.only].task}.{theirs}"
        return self.net.attribute(own, self.source.tensors[theirs])

    def _copy(self, ours: fx.Node, of: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """A copy of a call of the template, with the sizes of this task's inputs spelt out in it."""
        return self._make(self.literal[ours], lambda n: of(self._ours[n]) if n in self._ours else self._size(n))

    def _size(self, node: fx.Node) -> fx.Node:
        """A size that only this task's graph computes."""
        if ("size", node) not in self.copies:
            self.copies["size", node] = self._make(
                node, lambda n: self.where[self._ours[n]] if n in self._ours else self._size(n)
            )
        return self.copies["size", node]

    def _copy_of_parent(self, k: int, theirs: fx.Node) -> fx.Node:
        """Parent k's tensor, or a value that it computes from its tensors by moves."""
        if (k, theirs) not in self.copies:
            if theirs.op == "get_attr":
                name = str(theirs.target)
                node = self.net.attribute(f"parents.{k}.{name}", self.parents[k].tensors[name])
            else:
                node = self._make(
                    theirs, lambda n: self._copy_of_parent(k, n) if _is_tensor(n) else self._size_for(k, n)
                )
            self.copies[k, theirs] = node
        return self.copies[k, theirs]

    def _size_for(self, k: int, theirs: fx.Node) -> fx.Node:
        """A size that parent k computes, computed in the SuperNet."""
        ours = self._back[k].get(theirs)
        if ours in self.where:
            return self.where[ours]
        if (k, theirs) not in self.copies:
            self.copies[k, theirs] = self._make(theirs, lambda n: self._size_for(k, n))
        return self.copies[k, theirs]

    @cached_property
    def _ours(self) -> dict[fx.Node, fx.Node]:
        """Node of the template for every node of this task's graph."""
        return {theirs: ours for ours, theirs in self.literal.items()}

    @cached_property
    def _back(self) -> list[dict[fx.Node, fx.Node]]:
        """Per parent: node of the template for every node of its own."""
        return [{theirs: ours for ours, theirs in pairs.items()} for pairs in self.pairs]

    def _needed_as_it_is(self, node: fx.Node) -> bool:
        """Whether a parameter's value is asked for by its size only."""
        return any(self.sites.values[user] == "size" for user in node.users if user.op != "output")

    def _make(self, node: fx.Node, of: Any) -> fx.Node:
        copy = self.net.graph.node_copy(node, of)
        copy.meta = {k: v for k, v in node.meta.items() if k in ("source",)}
        return copy

    def _call(self, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
        node = self.net.graph.call_function(target, args)
        node.meta = {"by": "insert-merge", **({"source": like.meta["source"]} if "source" in like.meta else {})}
        return node

    def _cached(
        self, target: Any, args: tuple[Any, ...], like: fx.Node, known: dict[Any, fx.Node] | None = None
    ) -> fx.Node:
        """The node of this call, made once (for all trunks, where `known` is the net's)."""
        known = self.copies if known is None else known
        key = (target, repr(args))
        if key not in known:
            known[key] = self._call(target, args, like)
        return known[key]


def _written(site: Site) -> set[int | None]:
    """The axes of its result that a call writes; a merge node takes one, weights of more are folded as they are."""
    return {u.axis for o in site.operands for u in o.uses if u is not None and u.role == "write"}


def _is_tensor(node: fx.Node) -> bool:
    """Whether a node is a tensor, or several (the parts of one that was split)."""
    return isinstance(node.meta.get("val"), Tensor | tuple | list)
