"""The tasks' own heads behind a copy of the trunk: what reads it there sees what its own parent would see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from fxmerge.ir.merge import Folds, Weight, head
from fxmerge.ir.program import Port
from passes.supernet.site import Site, operands
from passes.supernet.state import State
from passes.supernet.trunk import Trunk, is_simple


@dataclass
class Heads:
    """The tail of the template's graph, once for every task that a trunk serves, with that parent's weights."""

    trunk: Trunk

    @property
    def state(self) -> State:
        return self.trunk.state

    def results(self) -> Iterator[tuple[Port, fx.Node]]:
        """The outputs of the tasks that this trunk serves."""
        for k in self.trunk.tasks:
            parent = self.state.parents[k]
            if any(node not in self.state.back[k] for node in parent.result):
                yield from self._another(k)
                continue
            for port, ours in zip(parent.outputs, self.state.first.result, strict=True):
                shape = self.state.named(k, port.shape)
                yield Port(f"{parent.task}.{port.name}", shape, port.dtype), self._own(k, ours)

    def _another(self, k: int) -> Iterator[tuple[Port, fx.Node]]:
        """The outputs of a parent whose head is not the template's: its own calls, which read the trunk."""
        parent, back = self.state.parents[k], self.state.back[k]
        todo = [node for node in parent.result if node not in back]
        needed = set(todo)
        while todo:
            below = [n for n in todo.pop().all_input_nodes if n not in back and n not in needed]
            todo += below
            needed.update(below)
        for theirs in (n for n in parent.graph.nodes if n in needed):
            self.trunk.copies[k, theirs] = self._call_of_another(k, theirs)
        for port, theirs in zip(parent.outputs, parent.result, strict=True):
            shape = self.state.named(k, port.shape)
            yield Port(f"{parent.task}.{port.name}", shape, port.dtype), self._value(k, theirs)

    def _value(self, k: int, theirs: fx.Node) -> fx.Node:
        """A value of parent k: behind the trunk its own, in the trunk what it would see."""
        ours = self.state.back[k].get(theirs)
        return self._own(k, ours) if ours in self.state.sites.tail else self._operand(k, theirs)

    def _call_of_another(self, k: int, theirs: fx.Node) -> fx.Node:
        sites, where, back = self.state.others[k], self.trunk.where, self.state.back[k]
        if theirs.op == "get_attr":
            name = str(theirs.target)
            if sites.values[theirs] == "parameter":
                return self.state.tensor_of(k, name)
            return self.state.literal(name, k, self.state.parents[k].tensors[name])
        if sites.values[theirs] == "size":
            return self.state.copy(theirs, lambda n: where[back[n]] if back.get(n) in where else self._value(k, n))
        node, site = self.state.copy(theirs, lambda n: self._value(k, n)), sites.sites.get(theirs)
        if site is None or site.kind != "linear" or not all(is_simple(o) for o in site.operands):
            return node
        folds = self._folds_of_another(k, site)
        return node if folds is None else self.state.call(head, (node, k, folds), theirs)

    def _folds_of_another(self, k: int, site: Site) -> Folds | None:
        """How a call of parent k's own head takes in the maps of what it reads of the trunk, if it can take in all."""
        ours, back, arguments = self.state.sites, self.state.back[k], operands(site.node)
        read = [n for n in arguments if n in back and back[n] not in ours.tail and ours.values[back[n]] == "data"]
        left = {(n, axis) for n in read for axis in ours.merged_axes(back[n])}
        crossing, weights = set(left), []
        for operand in site.operands:
            uses = [(i, u) for i, u in enumerate(operand.uses) if u is not None and (u.on, u.axis) in crossing]
            at_root = operand.whole(axis for axis, _ in uses)
            if operand.dynamic and not at_root:
                return None
            maps = [(self.state.maps.read(back[u.on], u.axis), i, u) for i, u in uses if u.axis is not None]
            left -= {(u.on, u.axis) for _, _, u in maps}
            axes = tuple(i if at_root else operand.places[i] or 0 for _, i, _ in maps)
            nodes = tuple(self.state.map(name) for name, _, _ in maps)
            weights.append(tuple(Weight(arguments.index(operand.node), at_root, axes, nodes)))
        return Folds(self.state.template, tuple(weights)) if crossing and not left else None

    def _own(self, k: int, ours: fx.Node) -> fx.Node:
        """Parent k's own version of a value at or after its head; what comes from the trunk is unmerged."""
        copies, pairs = self.trunk.copies, self.state.pairs[k]
        theirs = pairs[ours]
        if (k, theirs) in copies:
            return copies[k, theirs]
        if ours not in self.state.sites.tail:
            copies[k, theirs] = self._crossing(k, ours)
            return copies[k, theirs]
        for needed in self._order(ours):
            if (k, pairs[needed]) not in copies:
                copies[k, pairs[needed]] = self._call(k, needed)
        return copies[k, theirs]

    def _call(self, k: int, ours: fx.Node) -> fx.Node:
        sites = self.state.sites
        node = self.state.copy(self.state.pairs[k][ours], lambda n: self._operand(k, n))
        site = sites.sites.get(ours)
        if site is None or site.kind != "linear" or not all(is_simple(o) for o in site.operands):
            return node
        reads = {(u.on, u.axis) for o in site.operands for u in o.uses if u is not None and u.role == "read"}
        unmerged = {
            (n, axis)
            for n in operands(ours)
            if n not in sites.tail and sites.values[n] != "parameter"
            for axis in sites.merged_axes(n)
        }
        if not unmerged or not unmerged <= reads:
            return node
        return self.state.call(head, (node, k, self.trunk.folds(site, ("read",))), ours)

    def _order(self, last: fx.Node) -> list[fx.Node]:
        """Tail nodes that `last` needs, in the template's order."""
        tail = self.state.sites.tail
        needed, todo = {last}, [last]
        while todo:
            for node in todo.pop().all_input_nodes:
                if node in tail and node not in needed:
                    needed.add(node)
                    todo.append(node)
        return [n for n in self.state.first.graph.nodes if n in needed]

    def _operand(self, k: int, theirs: fx.Node) -> fx.Node:
        if (k, theirs) in self.trunk.copies:
            return self.trunk.copies[k, theirs]
        ours = self.state.back[k].get(theirs)
        if ours is not None and self.state.sites.values[ours] == "parameter":
            return self.trunk.copy_of_parent(k, theirs)
        if ours is None or self.state.sites.values[ours] == "size":
            return self.trunk.size_for(k, theirs)
        if self.state.sites.values[ours] == "constant":
            return self._constant(k, ours, theirs)
        return self._crossing(k, ours)

    def _constant(self, k: int, ours: fx.Node, theirs: fx.Node) -> fx.Node:
        """A constant of parent k; the trunk's where it is the same."""
        shared = not self._measured(ours) and (self.trunk.only == k or self._same(k, ours))
        if ours in self.trunk.where and shared:
            return self.trunk.where[ours]
        if (k, theirs) not in self.trunk.copies:
            if theirs.op == "get_attr":
                name = str(theirs.target)
                node = self.state.literal(name, k, self.state.parents[k].tensors[name])
            else:
                node = self.state.copy(theirs, lambda n: self._operand(k, n))
            self.trunk.copies[k, theirs] = node
        return self.trunk.copies[k, theirs]

    def _measured(self, ours: fx.Node) -> bool:
        """Whether a constant is of a parent's running statistics: those of the trunk are of the merged model."""
        if ours.op == "get_attr":
            return self.state.maps.is_statistic(str(ours.target))
        return any(self._measured(n) for n in ours.all_input_nodes if self.state.sites.values[n] == "constant")

    def _same(self, k: int, ours: fx.Node) -> bool:
        """Whether parent k computes a constant from the numbers that the template has."""
        constants = [n for n in ours.all_input_nodes if self.state.sites.values[n] == "constant"]
        return ours not in self.state.differ[k] and all(self._same(k, n) for n in constants)

    def _crossing(self, k: int, ours: fx.Node) -> fx.Node:
        value = self.trunk.seen_by(k, ours)
        if self.state.sites.merged_axes(ours):
            self.state.show(k, ours, value, final=True)
        return value
