"""Walk a SuperNet in the order of its graph with real values, its parents beside it, node by node.

What a method wants to know of a node is there when the walk comes to it: the merged values so far (behind maps that are
already solved) and each parent's own value. Values are dropped as soon as nothing needs them, so memory holds one
front of the graph, for all batches, and not all activations. Where tasks have inputs of their own a batch is one
task's: the value of what it does not reach is None.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.ir.program import Program
from fxmerge.methods.one_trunk import OneTrunk

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
        trunk: OneTrunk | None = None,
        tasks: Sequence[int | None] = (),
    ) -> None:
        """With `replaced` only what is `kept` is run, and what that is computed from; `tensors` may be another's.

        With `trunk`, whose program this is, a batch runs through the copy of its task (`tasks`, one for every batch).
        """
        kept = list(kept)
        self.program, self.trunk, self.tasks = program, trunk, tasks
        self.tensors = dict(program.tensors) if tensors is None else tensors
        """What `get_attr` nodes give; a method may change them as it goes."""
        self.replaced = dict(replaced or {})
        """What to compute on a batch in the place of a node's own call."""
        self.order = [node for node in program.graph.nodes if node.op != "output"]
        if replaced is not None:
            self.order = self._needed(kept, replaced)
        self.next = 0
        self.batches = batches
        self.held: dict[fx.Node, int] = {}
        for node in kept:
            self.hold(node)
        self.values: dict[fx.Node, list[Any]] = {}
        self.unread = dict.fromkeys(self.order, 0)
        for needed in (n for node in self.order if node not in self.replaced for n in self._reads(node)):
            self.unread[needed] = self.unread.get(needed, 0) + 1
        self.inputs = {node: port.name for node, port in zip(program.placeholders, program.inputs, strict=True)}
        self.inputs |= {} if trunk is None else trunk.ports

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
        for needed in self._reads(node) if node not in self.replaced else ():
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
        task = self.tasks[batch] if self.trunk is not None else None
        if self.trunk is None or task is None:
            return self._run(node, batch, lambda n: n, instead or {})
        real = self.trunk.real(node, task)
        return None if real is None else self._run(real, batch, self.trunk.back.get, instead or {})

    def _run(
        self, node: fx.Node, batch: int, known: Callable[[fx.Node], fx.Node | None], instead: Mapping[fx.Node, Any]
    ) -> Any:
        """Run a node whose operands are there under the nodes that are `known` for them."""
        if node.op == "placeholder":
            return self.batches[batch].get(self.inputs[node])
        if node.op == "get_attr":
            name = str(node.target)
            return self.program.maps[name] if name in self.program.maps else self.tensors[name]
        missing = False

        def operand(n: fx.Node) -> Any:
            nonlocal missing
            ours = known(n)
            if ours is None:
                found = self._run(n, batch, known, instead)
            elif ours in instead:
                found = instead[ours]
            else:
                found = self.values[ours][batch if len(self.values[ours]) > 1 else 0]
            missing = missing or found is None
            return found

        args, kwargs = fx.node.map_arg((node.args, node.kwargs), operand)
        target: Any = node.target
        return None if missing else target(*args, **kwargs)

    def _drop(self, node: fx.Node) -> None:
        if self.unread.get(node, 0) <= 0 and self.held.get(node, 0) <= 0 and node.op == "call_function":
            self.values.pop(node, None)

    def _reads(self, node: fx.Node) -> Iterable[fx.Node]:
        return node.all_input_nodes if self.trunk is None else self.trunk.reads(node)

    def _needed(self, wanted: Iterable[fx.Node], given: Iterable[fx.Node]) -> list[fx.Node]:
        """What is wanted and what it is computed from, as far as it is not given, in order."""
        stop, needed, todo = set(given), set[fx.Node](), list(wanted)
        while todo:
            node = todo.pop()
            if node not in needed:
                needed.add(node)
                todo += [] if node in stop else self._reads(node)
        return [node for node in self.order if node in needed]
