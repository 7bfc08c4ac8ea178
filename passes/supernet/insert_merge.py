"""Join K parents into one SuperNet: merge nodes behind their writers, unmerge nodes before their readers.

    y_k = writer_k(x_k)            x_k = unmerge(x, U, k)     y = merge([writer_1(x_1) … writer_K(x_K)], M)

The SuperNet runs the graph of one parent, the template; only the calls in which parameters meet data exist once per
parent. Parameters that no linear call takes (norm scales, say) become trainable tensors of the SuperNet itself.
Heads stay per task. So do stems, where parents take different inputs: the trunk then stands once per task, with the
same weights.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from fxmerge.coupling import RuleSet
from fxmerge.errors import LineUpError
from fxmerge.ir.program import Port, Program
from fxmerge.ir.space import leaves
from fxmerge.ir.supernet import Feature, Own, SuperNet
from passes.line_up.pairs import line_up, line_up_all
from passes.supernet.maps import Maps
from passes.supernet.resize import resize, widen
from passes.supernet.sites import Operand, Sites, SitesOf
from passes.supernet.trunk import Trunk


def insert_merge(
    parents: Sequence[Program], rules: RuleSet, template: int = 0, width_scale: float | None = None
) -> SuperNet:
    """The SuperNet of `parents` (normalised programs) with the sizes of parent `template`, times `width_scale`.

    Every map starts as the average: M_k = I/K, U_k = I (rectangular where widths differ).
    Raises `LineUpError` where the parents part, or where nothing can be merged.
    """
    parents = line_up_all(parents, template)
    first = parents[template] if width_scale is None else widen(parents[template], rules, width_scale)
    pairs = [line_up(first, parent) for parent in parents]
    sites = first.get(SitesOf(rules))
    if not sites.mergeable:
        raise LineUpError(
            f"{first.task} has no inner space that its parameters write: there is nothing to merge",
            "merge models with at least one hidden layer",
        )
    others = tuple(parent.get(SitesOf(rules)) for parent in parents)
    net = Net(first, tuple(parents), template, pairs, sites, others, Maps(first, sites, others, pairs))
    return net.shared() if net.takes_one_input() else net.apart()


@dataclass
class Net:
    """The SuperNet under construction."""

    first: Program
    """The template: the program whose graph and sizes the merged model has."""
    parents: tuple[Program, ...]
    template: int
    pairs: Sequence[Mapping[fx.Node, fx.Node]]
    sites: Sites
    others: Sequence[Sites]
    maps: Maps
    graph: fx.Graph = field(default_factory=fx.Graph)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    own: dict[str, Own] = field(default_factory=dict)
    trainable: set[str] = field(default_factory=set)
    features: dict[tuple[int, fx.Node], Feature] = field(default_factory=dict)
    """By parent and node of that parent, in order of first appearance."""
    feature_nodes: dict[str, fx.Node] = field(default_factory=dict)
    attributes: dict[str, fx.Node] = field(default_factory=dict)
    folded: dict[Any, fx.Node] = field(default_factory=dict)
    """Tensors that are folded where they stand, once for all trunks."""
    apart_inputs: bool = False

    # -- one trunk, or one behind every stem ---------------------------------------------------------

    def takes_one_input(self) -> bool:
        """Whether all parents can be given the same tensors: inputs of one shape and type, tables of one length."""
        ports = {tuple((p.shape, p.dtype) for p in parent.inputs) for parent in self.parents}
        sites = [s for n, s in self.sites.sites.items() if s.kind != "direct" and n not in self.sites.tail]
        return len(ports) == 1 and all(self.same_size(o) for site in sites for o in site.operands)

    def same_size(self, operand: Operand) -> bool:
        """Whether the parents' tensors agree on the axes that no map changes (the rows of a table, say)."""
        mapped = {axis for axis, _ in self.maps.of_operand(operand)}
        root = self.root(operand)
        shapes = [pairs[root].meta["val"].shape for pairs in self.pairs]
        return len({tuple(n for axis, n in enumerate(shape) if axis not in mapped) for shape in shapes}) == 1

    def root(self, operand: Operand) -> fx.Node:
        """The template's node of the tensor that an operand is."""
        node = operand.node
        while node.op != "get_attr":
            node = next(n for n in node.all_input_nodes if self.sites.values[n] == "parameter")
        return node

    def shared(self) -> SuperNet:
        trunk = Trunk(self, self.first, {n: n for n in self.first.graph.nodes})
        trunk.build([self.graph.placeholder(str(n.target)) for n in self.first.placeholders])
        names = tuple(port.name for port in self.first.inputs)
        return self._finish(self.first.inputs, trunk.results(), (names,) * len(self.parents))

    def apart(self) -> SuperNet:
        """Every task has inputs, stem, trunk and head of its own; all trunks have the same weights."""
        self.apart_inputs = True
        ports: list[Port] = []
        starts: list[list[fx.Node]] = []
        for k, parent in enumerate(self.parents):
            own = [Port(f"{parent.task}.{p.name}", self.named(k, p.shape), p.dtype) for p in parent.inputs]
            starts.append([self.graph.placeholder(re.sub(r"\W", "_", port.name)) for port in own])
            ports += own
        results: list[tuple[Port, fx.Node]] = []
        for k, parent in enumerate(self.parents):
            source, where = resize(parent, self.others[k], self._sizes(k))
            literal = {ours: where[theirs] for ours, theirs in self.pairs[k].items()}
            trunk = Trunk(self, source, literal, only=k)
            trunk.build(starts[k])
            results += trunk.results()
        names = tuple(tuple(f"{parent.task}.{p.name}" for p in parent.inputs) for parent in self.parents)
        return self._finish(tuple(ports), results, names)

    def _sizes(self, k: int) -> dict[str, int]:
        """Size in the template of every mergeable space of parent k."""
        sizes: dict[str, int] = {}
        theirs = self.others[k].spaces
        for ours, other in self.pairs[k].items():
            for a, b in zip(self.sites.spaces.axes.get(ours, ()), theirs.axes.get(other, ()), strict=False):
                pair = (list(leaves(a)), list(leaves(b))) if not isinstance(a, tuple) else ([], [])
                if len(pair[0]) == len(pair[1]):
                    sizes.update(
                        {y.space: x.size for x, y in zip(*pair, strict=True) if x.space in self.sites.mergeable}
                    )
        return sizes

    def named(self, k: int, shape: Sequence[int | str]) -> tuple[int | str, ...]:
        """A shape of parent k; its dynamic sizes have names of their own where the inputs do."""
        suffix = f"_{k}" if self.apart_inputs and k else ""
        return tuple(size + suffix if isinstance(size, str) else size for size in shape)

    def _finish(
        self, inputs: tuple[Port, ...], results: Iterable[tuple[Port, fx.Node]], names: tuple[tuple[str, ...], ...]
    ) -> SuperNet:
        found = list(results)
        for feature in self.features.values():
            value, parent = feature.node.meta["val"], self.parents[feature.parent]
            shape = self.named(feature.parent, parent.shape(value))
            found.append((Port(feature.port, shape, value.dtype), self.feature_nodes[feature.port]))
        self.graph.output(tuple(node for _, node in found))
        sizes: dict[str, dict[str, object]] = {"ranges": {}, "hints": {}}
        for k, parent in enumerate(self.parents if self.apart_inputs else (self.first,)):
            for name, table in (("ranges", parent.ranges), ("hints", parent.hints)):
                sizes[name].update({str(self.named(k, (size,))[0]): value for size, value in table.items()})
        program = Program(
            graph=self.graph,
            tensors=self.tensors,
            inputs=inputs,
            outputs=tuple(port for port, _ in found),
            parameters=frozenset(self.trainable),
            maps=self.maps.modules,
            task="+".join(parent.task for parent in self.parents),
            notes=tuple(dict.fromkeys(note for parent in self.parents for note in parent.notes)) + self._untied(),
            **sizes,  # type: ignore[arg-type]
        )
        return SuperNet(
            program.evolve(),
            self.parents,
            self.template,
            tuple(self.features.values()),
            self.own,
            self.maps.places,
            names,
        )

    def _untied(self) -> tuple[str, ...]:
        """A note for every tensor that the template uses in two roles, and the merged model holds twice."""
        roles: dict[str, set[tuple[str | None, ...]]] = {}
        for node, site in self.sites.sites.items():
            for operand in site.operands:
                found = tuple(use.role if use else None for use in operand.uses)
                roles.setdefault(operand.root, set()).add((*found, "head" if node in self.sites.tail else "trunk"))
        return tuple(
            f"{name} was tied and is untied: it is written in one place and read in another"
            for name, uses in roles.items()
            if len(uses) > 1
        )

    # -- what all trunks share -------------------------------------------------------------------------

    def attribute(self, name: str, tensor: Tensor) -> fx.Node:
        """The node of a tensor."""
        if name not in self.attributes:
            self.tensors[name] = tensor
            self.attributes[name] = self.graph.get_attr(name)
        return self.attributes[name]

    def map(self, name: str) -> fx.Node:
        """The node of a map."""
        if name not in self.attributes:
            self.attributes[name] = self.graph.get_attr(name)
        return self.attributes[name]

    def direct(self, name: str) -> fx.Node:
        """The node of a tensor of the SuperNet itself, started as the parents' average."""
        if name not in self.own:
            self.own[name] = self.maps.own(name)
            if name in self.first.parameters:
                self.trainable.add(name)
        mean = self.own[name].average([1.0] * len(self.parents))
        return self.attribute(name, mean.to(self.first.tensors[name].dtype))
