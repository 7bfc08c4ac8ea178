"""What a SuperNet under construction is made of, shared by all copies of its trunk.

Node for node, with two parents a and b of which a is the template (its graph is the merged model's):

    of the template     of parent b       in the SuperNet
    x  (input)          x                 x                                                    one, or one a task
    y = linear(x, W)    linear(x, W')     merge([linear(unmerge(x, U, 0), W),                  a site: `Trunk`
                                                 linear(unmerge(x, U, 1), W')], M)
    z = relu(y)         relu(y)           relu(y)                                              the template's call
    s  (norm scale)     s'                s, at first the mean of both                         `State.direct`
    t = W[:, 2:]        W'[:, 2:]         fold([W, W'], …)[:, 2:]                              `Trunk.folded`
    h = linear(z, H)    linear(z, H')     linear(unmerge(z, U', 0), H), head node behind it    the tail: `Heads`
                                          linear(unmerge(z, U', 1), H'), head node behind it

`State.pairs[k]` leads from the first column to the second, `Trunk.where` from the first to the third (for the trunk),
`Trunk.copies` from the second to the third (for a parent's tensors, for heads and for sizes). `Trunk.literal` is only
needed where tasks have inputs of their own: it leads from the template's node to the one of the task's own graph at
the template's widths, whose call is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor, fx

from fxmerge.ir.program import Origin, Program
from fxmerge.ir.row_axes import row_axes
from fxmerge.ir.supernet import Feature, Own
from passes.line_up.constants import differences
from passes.supernet.maps import Maps, free
from passes.supernet.site import Operand, Sites


@dataclass
class State:
    """Parents that line up, and the graph, tensors and features made of them so far."""

    first: Program
    """The template: the program whose graph and sizes the merged model has."""
    parents: tuple[Program, ...]
    template: int
    pairs: Sequence[Mapping[fx.Node, fx.Node]]
    """Per parent: its node for every node of the template."""
    sites: Sites
    others: Sequence[Sites]
    maps: Maps
    apart: bool = False
    """Whether every task has inputs of its own."""
    notes: tuple[str, ...] = ()
    graph: fx.Graph = field(default_factory=fx.Graph)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    origins: dict[str, Origin] = field(default_factory=dict)
    own: dict[str, Own] = field(default_factory=dict)
    trainable: set[str] = field(default_factory=set)
    features: dict[tuple[int, fx.Node], Feature] = field(default_factory=dict)
    """By parent and node of that parent, in order of first appearance."""
    feature_nodes: dict[str, fx.Node] = field(default_factory=dict)
    attributes: dict[Hashable, fx.Node] = field(default_factory=dict)
    """The nodes of tensors and maps, by what they are."""
    folded: dict[Any, fx.Node] = field(default_factory=dict)
    """Tensors that are folded where they stand, once for all trunks."""

    # -- the parents -----------------------------------------------------------------------------------

    @property
    def everyone(self) -> list[int]:
        return list(range(len(self.parents)))

    @cached_property
    def back(self) -> list[dict[fx.Node, fx.Node]]:
        """Per parent: node of the template for every node of its own."""
        return [{theirs: ours for ours, theirs in pairs.items()} for pairs in self.pairs]

    @cached_property
    def differ(self) -> list[set[fx.Node]]:
        """Per parent: the template's nodes that hold another constant than the parent's."""
        pairs = zip(self.parents, self.pairs, strict=True)
        return [
            {each.node for each in differences(self.first, parent, own, self.sites.operators)} for parent, own in pairs
        ]

    def root(self, operand: Operand) -> fx.Node:
        """The template's node of the tensor that an operand is."""
        node = operand.node
        while node.op != "get_attr":
            node = next(n for n in node.all_input_nodes if self.sites.values[n] == "parameter")
        return node

    def same_size(self, operand: Operand) -> bool:
        """Whether the parents' tensors agree on the axes that no map changes (the rows of a table, say)."""
        return len(set(self.fixed_sizes(operand))) == 1

    def fixed_sizes(self, operand: Operand) -> list[tuple[int, ...]]:
        """Per parent: the sizes of the axes of a tensor that no map changes."""
        mapped = {axis for axis, _ in self.maps.of_operand(operand)}
        root = self.root(operand)
        shapes = [pairs[root].meta["val"].shape for pairs in self.pairs]
        return [tuple(n for axis, n in enumerate(shape) if axis not in mapped) for shape in shapes]

    def named(self, k: int, shape: Sequence[int | str]) -> tuple[int | str, ...]:
        """A shape of parent k; its dynamic sizes have names of their own where the inputs do."""
        suffix = f"_{k}" if self.apart and k else ""
        return tuple(size + suffix if isinstance(size, str) else size for size in shape)

    # -- tensors and maps --------------------------------------------------------------------------------

    def tensor_of(self, k: int, name: str) -> fx.Node:
        """The node of a tensor of parent k."""
        parent = self.parents[k]
        origin = Origin(k, name, name in parent.parameters)
        return self._attribute(f"parents.{k}.{name}", parent.tensors[name], origin)

    def literal(self, name: str, k: int | None, tensor: Tensor) -> fx.Node:
        """The node of a constant that stays as it is: the template's, or task k's own."""
        wanted = name if k is None else f"{self.parents[k].task}.{name}"
        return self._attribute(wanted, tensor, ("constant", k, name))

    def direct(self, name: str) -> fx.Node:
        """The node of a tensor of the SuperNet itself, started as the parents' average."""
        if name not in self.own:
            self.own[name] = self.maps.own(name)
            if name in self.first.parameters:
                self.trainable.add(name)
        mean = self.own[name].average([1.0] * len(self.parents))
        return self._attribute(name, mean.to(self.first.tensors[name].dtype), name)

    def _attribute(self, wanted: str, tensor: Tensor, what: Origin | Hashable) -> fx.Node:
        """The node of a tensor, once for each `what`: under the wanted name where no other tensor has it."""
        if what not in self.attributes:
            name = wanted
            if name != what:  # the template's own names belong to what the SuperNet trains
                name = free(wanted, (*self.tensors, *self.first.tensors))
            self.tensors[name] = tensor
            self.attributes[what] = self.graph.get_attr(name)
            if isinstance(what, Origin):
                self.origins[name] = what
        return self.attributes[what]

    def map(self, name: str) -> fx.Node:
        """The node of a map."""
        if ("map", name) not in self.attributes:
            self.attributes["map", name] = self.graph.get_attr(name)
        return self.attributes["map", name]

    # -- features ----------------------------------------------------------------------------------------

    def show(self, k: int, ours: fx.Node, value: fx.Node, *, final: bool) -> None:
        """Let the SuperNet show `value` as what parent k would see of the template's node `ours`."""
        theirs = self.pairs[k][ours]
        known = self.features.get((k, theirs))
        if known is not None:
            if final and not known.final:
                self.features[k, theirs] = Feature(k, known.port, theirs, True)
            return
        parent = self.parents[k]
        if parent.rows is not None and theirs not in parent.get(row_axes):
            line = theirs.meta.get("source", theirs.name)
            self.notes += (f"{parent.task}: the value at {line} is not compared, its rows are on no axis of their own",)
            return
        port = f"{parent.task}/{len(self.features)}"
        self.features[k, theirs] = Feature(k, port, theirs, final)
        self.feature_nodes[port] = value

    # -- nodes -------------------------------------------------------------------------------------------

    def copy(self, node: fx.Node, of: Callable[[fx.Node], fx.Node]) -> fx.Node:
        """A copy of a parent's node that reads `of` each of its operands."""
        copy = self.graph.node_copy(node, of)
        copy.meta = {key: value for key, value in node.meta.items() if key == "source"}
        return copy

    def call(self, target: Any, args: tuple[Any, ...], like: fx.Node) -> fx.Node:
        """A call of a node kind that only SuperNets have, at the source line of `like`."""
        node = self.graph.call_function(target, args)
        node.meta = {"by": "insert-merge", **({"source": like.meta["source"]} if "source" in like.meta else {})}
        return node
