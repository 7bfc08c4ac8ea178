"""Walk a SuperNet in the order of its graph with real values, its parents beside it, node by node.

What a method wants to know of a node is there when the walk comes to it: the merged values so far (behind maps that are
already solved) and each parent's own value. Values are dropped as soon as nothing needs them, so memory holds one
front of the graph, for all batches, and not all activations.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.ir.program import Program

Batch = Mapping[str, Tensor]


class Values:
    """A program run node by node on several batches at once; a value lives until its last reader has run."""

    def __init__(
        self,
        program: Program,
        batches: Sequence[Batch],
        kept: Iterable[fx.Node] = (),
        replaced: Mapping[fx.Node, Callable[[int], Tensor]] | None = None,
        tensors: dict[str, Tensor] | None = None,
    ) -> None:
        """With `replaced` only what is `kept` is run, and what that is computed from; `tensors` may be another's."""
        kept = list(kept)
        self.program = program
        self.tensors = dict(program.tensors) if tensors is None else tensors
        """What `get_attr` nodes give; a method may change them as it goes."""
        self.replaced = dict(replaced or {})
        """What to compute on a batch in the place of a node's own call."""
        self.order = [node for node in program.graph.nodes if node.op != "output"]
        if replaced is not None:
            self.order = _needed(self.order, kept, replaced)
        self.next = 0
        self.batches = batches
        self.held: dict[fx.Node, int] = {}
        for node in kept:
            self.hold(node)
        self.values: dict[fx.Node, list[Any]] = {}
        run = set(self.order) - self.replaced.keys()
        self.unread = {node: sum(user in run for user in node.users) for node in self.order}
        self.inputs = {node: port.name for node, port in zip(program.placeholders, program.inputs, strict=True)}

    def hold(self, node: fx.Node) -> None:
        """Keep a value for one more `release`, whoever has read it by then."""
        self.held[node] = self.held.get(node, 0) + 1

    def release(self, node: fx.Node) -> None:
        self.held[node] -= 1
        self._drop(node)

    def of(self, node: fx.Node) -> list[Any]:
        """The value of a node for every batch; what comes before it in the graph is run."""
        while node not in self.values:
            self.step()
        return self.values[node]

    def step(self) -> None:
        """Run the next node."""
        node: fx.Node = self.order[self.next]
        self.next += 1
        with torch.no_grad():
            self.values[node] = [self.value(node, i) for i in range(len(self.batches))]
        for needed in set(node.all_input_nodes) if node not in self.replaced else ():
            self.unread[needed] -= 1
            self._drop(needed)

    def again(self, node: fx.Node) -> None:
        """Compute a node anew, from operands that are still there."""
        with torch.no_grad():
            self.values[node] = [self.value(node, i) for i in range(len(self.batches))]

    def value(self, node: fx.Node, batch: int, instead: Mapping[fx.Node, Any] | None = None) -> Any:
        """What a node gives on a batch, with other values in the place of some operands."""
        if node in self.replaced:
            return self.replaced[node](batch)
        if node.op == "placeholder":
            return self.batches[batch][self.inputs[node]]
        if node.op == "get_attr":
            name = str(node.target)
            return self.program.maps[name] if name in self.program.maps else self.tensors[name]

        def operand(n: fx.Node) -> Any:
            return instead[n] if instead and n in instead else self.values[n][batch if len(self.values[n]) > 1 else 0]

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), operand)
        target: Any = node.target
        return target(*args, **kwargs)

    def _drop(self, node: fx.Node) -> None:
        if self.unread.get(node, 0) <= 0 and self.held.get(node, 0) <= 0 and node.op == "call_function":
            self.values.pop(node, None)


def _needed(order: Sequence[fx.Node], wanted: Iterable[fx.Node], given: Iterable[fx.Node]) -> list[fx.Node]:
    """What is wanted and what it is computed from, as far as it is not given, in order."""
    stop, needed, todo = set(given), set[fx.Node](), list(wanted)
    while todo:
        node = todo.pop()
        if node not in needed:
            needed.add(node)
            todo += [] if node in stop else node.all_input_nodes
    return [node for node in order if node in needed]
