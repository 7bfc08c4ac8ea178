"""Join K parents into one SuperNet: merge nodes behind their writers, unmerge nodes before their readers.

    y_k = writer_k(x_k)            x_k = unmerge(x, U, k)     y = merge([writer_1(x_1) … writer_K(x_K)], M)

The SuperNet runs the graph of one parent, the template; only the calls in which parameters meet data exist once per
parent. Parameters that no linear call takes (norm scales, say) become trainable tensors of the SuperNet itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, fx

from fxmerge.coupling import RuleSet
from fxmerge.errors import LineUpError
from fxmerge.ir.merge import fold, merge, unmerge
from fxmerge.ir.program import Port, Program
from fxmerge.ir.supernet import Feature, Folds, Own, SuperNet
from passes.line_up import line_up
from passes.maps import Maps
from passes.sites import Operand, Site, Sites, SitesOf, operands
from passes.widen import widen


def insert_merge(
    parents: Sequence[Program], rules: RuleSet, template: int = 0, width_scale: float | None = None
) -> SuperNet:
    """The SuperNet of `parents` (normalised programs) with the sizes of parent `template`, times `width_scale`.

    Every map starts as the average: M_k = I/K, U_k = I (rectangular where widths differ).
    Raises `LineUpError` where the parents part, or where nothing can be merged.
    """
    first = parents[template] if width_scale is None else widen(parents[template], rules, width_scale)
    pairs = [line_up(first, parent) for parent in parents]
    sites = first.get(SitesOf(rules))
    if not sites.mergeable:
        raise LineUpError(
            f"{first.task} has no inner space that its parameters write: there is nothing to merge",
            "merge models with at least one hidden layer",
        )
    others = tuple(parent.get(SitesOf(rules)) for parent in parents)
    builder = _Builder(first, tuple(parents), template, pairs, sites, Maps(first, sites, others, pairs))
    return builder.build()


@dataclass
class _Builder:
    first: Program
    """The template: the program whose graph and sizes the merged model has."""
    parents: tuple[Program, ...]
    template: int
    pairs: Sequence[Mapping[fx.Node, fx.Node]]
    sites: Sites
    maps: Maps
    graph: fx.Graph = field(default_factory=fx.Graph)
    where: dict[fx.Node, fx.Node] = field(default_factory=dict)
    copies: dict[Any, fx.Node] = field(default_factory=dict)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, Own] = field(default_factory=dict)
    trainable: set[str] = field(default_factory=set)
    features: dict[tuple[int, fx.Node], Feature] = field(default_factory=dict)
    """By parent and node of that parent, in order of first appearance."""
    feature_nodes: dict[str, fx.Node] = field(default_factory=dict)

    def build(self) -> SuperNet:
        self._check_inputs()
        for node in self.first.graph.nodes:
            if node.op == "placeholder":
                self._keep(node, self.graph.placeholder(str(node.target)))
            elif node.op == "output" or node not in self.pairs[0] or node in self.sites.tail:
                continue
            elif node in self.sites.sites:
                self._keep(node, self._trunk_site(self.sites.sites[node]))
            elif self.sites.values[node] == "parameter" and not self._needed_as_it_is(node):
                continue
            else:
                self._keep(node, self._copy_of_template(node))
        ports, results = self._outputs()
        self.graph.output(tuple(results))
        program = Program(
            graph=self.graph,
            tensors=self.tensors,
            inputs=self.first.inputs,
            outputs=tuple(ports),
            parameters=frozenset(self.trainable),
            maps=self.maps.modules,
            task="+".join(parent.task for parent in self.parents),
            samples=self.first.samples,
            notes=tuple(dict.fromkeys(note for parent in self.parents for note in parent.notes)),
            ranges=self.first.ranges,
            hints=self.first.hints,
        )
        features = tuple(self.features.values())
        return SuperNet(program.evolve(), self.parents, self.template, features, self.own, self.maps.places)

    # -- trunk ---------------------------------------------------------------------------------------

    def _trunk_site(self, site: Site) -> fx.Node:
        """The merged form of a call in which parameters meet data."""
        folds = site.kind != "direct" and all(self._can_fold(o) for o in site.operands)
        if site.kind == "linear" and folds and all(self._simple(o) for o in site.operands):
            return self._side_by_side(site)
        values = {}
        for operand in site.operands:
            if not folds or not self.maps.has(operand):
                values[operand.node] = self._chain(operand, self._direct(operand.root))
            else:
                values[operand.node] = self._folded(operand)
        return self._make(site.node, lambda n: values[n] if n in values else self.where[n])

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
        for k, pairs in enumerate(self.pairs):
            call = pairs[site.node]
            own = {pairs[o.node]: self._copy_of_parent(k, pairs[o.node]) for o in site.operands}
            for ours in operands(site.node):
                if pairs[ours] not in own:
                    own[pairs[ours]] = self._seen_by(k, ours, site)
            values.append(self._make(call, lambda n, k=k, own=own: own[n] if n in own else self._size_for(k, n)))
        writes = {u.axis for o in site.operands for u in o.uses if u is not None and u.role == "write"}
        result = self._merge(values, site.node, sorted(a for a in writes if a is not None))
        result.meta["folds"] = self._folds(site, list(range(len(self.parents))))
        return result

    def _folds(self, site: Site, parents: list[int]) -> Folds:
        """How the weights of a call are folded, for the pass that hoists it."""
        how: dict[int, tuple[bool, tuple[tuple[int, str], ...]]] = {}
        arguments = operands(site.node)
        for operand in site.operands:
            at_root = self._at_root(operand)
            keep: tuple[str, ...] = ("write", "read") if len(parents) > 1 else ("read",)
            maps = [
                (axis if at_root else operand.places[axis] or 0, name)
                for axis, name in self.maps.of_operand(operand)
                if operand.uses[axis] is not None and operand.uses[axis].role in keep  # type: ignore[union-attr]
            ]
            for _, name in maps:
                self._map(name)
            how[arguments.index(operand.node)] = (at_root, tuple(maps))
        return Folds(self.template, tuple(parents), how)

    def _merge(self, values: list[fx.Node], on: fx.Node, axes: list[int]) -> fx.Node:
        everyone = list(range(len(self.parents)))
        assert len(axes) == 1, f"{on}: a call writes {len(axes)} spaces"
        axis_map = self._map(self.maps.written(on, axes[0]))
        return self._call(merge, (values, axis_map, axes[0], everyone), on)

    def _seen_by(self, k: int, node: fx.Node, site: Site | None = None) -> fx.Node:
        """A trunk value as parent k would see it: unmerged on the axes that the site reads, or on all without one."""
        axes = self.sites.merged_axes(node)
        if site is not None:
            read = {u.axis for o in site.operands for u in o.uses if u and u.role == "read" and u.on is node}
            axes = tuple(a for a in axes if a in read)
        value = self.where[node]
        for axis in axes:
            axis_map = self.maps.read(node, axis)
            value = self._cached(unmerge, (value, self._map(axis_map), axis, k), node)
        if axes and site is not None and site.kind == "linear":
            self._feature(k, node, value, final=False)
        return value

    def _folded(self, operand: Operand) -> fx.Node:
        """The parents' tensors folded into one, for a parameter whose maps cannot stand on activations."""
        at_root, maps = self._at_root(operand), self.maps.of_operand(operand)
        theirs = self._root(operand) if at_root else operand.node
        own = [self._copy_of_parent(k, pairs[theirs]) for k, pairs in enumerate(self.pairs)]
        names = [self._map(name) for _, name in maps]
        axes = [axis if at_root else operand.places[axis] for axis, _ in maps]
        value = self._cached(fold, (own, names, axes, list(range(len(own)))), theirs)
        return self._chain(operand, value) if at_root else value

    def _direct(self, root: str) -> fx.Node:
        """A tensor of the SuperNet itself, started as the parents' average."""
        if ("direct", root) not in self.copies:
            self.own[root] = self.maps.own(root)
            mean = self.own[root].average([1.0] * len(self.parents))
            self.tensors[root] = mean.to(self.first.tensors[root].dtype)
            if root in self.first.parameters:
                self.trainable.add(root)
            self.copies["direct", root] = self.graph.get_attr(root)
        return self.copies["direct", root]

    def _chain(self, operand: Operand, value: fx.Node) -> fx.Node:
        """The template's moves between a tensor and the call that takes it, on `value`."""
        if operand.node.op == "get_attr":
            return value
        return self._make(
            operand.node,
            lambda n: self._chain(_behind(operand, n), value) if self.sites.values[n] == "parameter" else self.where[n],
        )

    # -- tails ---------------------------------------------------------------------------------------

    def _outputs(self) -> tuple[list[Port], list[fx.Node]]:
        ports, results = [], []
        for k, parent in enumerate(self.parents):
            for port, ours in zip(parent.outputs, self.first.result, strict=True):
                ports.append(Port(f"{parent.task}.{port.name}", port.shape, port.dtype))
                results.append(self._tail(k, ours))
        for feature in self.features.values():
            node = self.feature_nodes[feature.port]
            value = feature.node.meta["val"]
            ports.append(Port(feature.port, self.parents[feature.parent].shape(value), value.dtype))
            results.append(node)
        return ports, results

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
                node.meta["folds"] = self._folds(site, [k])
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
        theirs = self.pairs[k][ours]
        known = self.features.get((k, theirs))
        if known is not None:
            if final and not known.final:
                self.features[k, theirs] = Feature(k, known.port, theirs, True)
            return
        port = f"{self.parents[k].task}/{len(self.features)}"
        self.features[k, theirs] = Feature(k, port, theirs, final)
        self.feature_nodes[port] = value

    # -- copying nodes -------------------------------------------------------------------------------

    def _copy_of_template(self, node: fx.Node) -> fx.Node:
        if node.op == "get_attr":
            name = str(node.target)
            if self.maps.is_statistic(name):
                return self._direct(name)
            self.tensors[name] = self.first.tensors[name]
            return self.graph.get_attr(name)
        return self._make(node, lambda n: self.where[n])

    def _copy_of_parent(self, k: int, theirs: fx.Node) -> fx.Node:
        """Parent k's tensor, or a value that it computes from its tensors by moves."""
        if (k, theirs) not in self.copies:
            if theirs.op == "get_attr":
                name = f"parents.{k}.{theirs.target}"
                self.tensors[name] = self.parents[k].tensors[str(theirs.target)]
                node = self.graph.get_attr(name)
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
    def _back(self) -> list[dict[fx.Node, fx.Node]]:
        """Per parent: node of the template for every node of its own."""
        return [{theirs: ours for ours, theirs in pairs.items()} for pairs in self.pairs]

    def _needed_as_it_is(self, node: fx.Node) -> bool:
        """Whether a parameter's value is asked for by its size only."""
        return any(self.sites.values[user] == "size" for user in node.users if user.op != "output")

    def _root(self, operand: Operand) -> fx.Node:
        node = operand.node
        while node.op != "get_attr":
            node = next(n for n in node.all_input_nodes if self.sites.values[n] == "parameter")
        return node

    def _make(self, node: fx.Node, of: Any) -> fx.Node:
        copy = self.graph.node_copy(node, of)
        copy.meta = {k: v for k, v in node.meta.items() if k in ("source",)}
        return copy

    def _call(self, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
        node = self.graph.call_function(target, args)
        node.meta = {"by": "insert-merge", **({"source": like.meta["source"]} if "source" in like.meta else {})}
        return node

    def _cached(self, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
        key = (target, repr(args))
        if key not in self.copies:
            self.copies[key] = self._call(target, args, like)
        return self.copies[key]

    def _map(self, name: str) -> fx.Node:
        key = ("map", name)
        if key not in self.copies:
            self.copies[key] = self.graph.get_attr(name)
        return self.copies[key]

    def _keep(self, node: fx.Node, copy: fx.Node) -> None:
        self.where[node] = copy

    def _check_inputs(self) -> None:
        for parent in self.parents:
            for ours, theirs in zip(self.first.inputs, parent.inputs, strict=True):
                if ours != theirs:
                    here = f"{self.first.task} takes {ours.name} {list(ours.shape)}"
                    there = f"{parent.task} takes {theirs.name} {list(theirs.shape)}"
                    raise LineUpError(f"{here}, {there}", "merge models that take the same inputs")


def _behind(operand: Operand, node: fx.Node) -> Operand:
    return Operand(node, operand.root, operand.uses, operand.covers, operand.places, operand.dynamic)


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)
