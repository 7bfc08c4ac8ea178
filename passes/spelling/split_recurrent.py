"""Write recurrent layers one by one, each direction by itself, with the map from its input to the gates before it.

    lstm(x, [0, 0], [W V b c  W' V' b' c'], 2 layers)   -->   h  = lstm(linear(x, W, b), V, c)
                                                              h' = lstm(linear(h, W', b'), V', c')
    both directions          -->   two layers side by side, the second in reverse
    batch first              -->   a permutation before and after
    states at the end        -->   the last time of each layer, stacked where all are asked for

Every layer then has units of its own, which a stack of states would tie together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx, ops

import passes.spelling.recurrent_layer  # noqa: F401  (registers the operators)
from fxmerge.coupling import Call, operator_name
from fxmerge.ir.program import Program, prune
from passes.operators import OPERATORS, Operators
from passes.rules.recurrent import STACKS, kind_of


def split_recurrent(program: Program, operators: Operators = OPERATORS) -> Program:
    """`program` with every stack of recurrent layers as layers of one direction, where it can be written so."""
    if not any(_splits(node) for node in program):
        return program
    graph, _ = program.copy_graph()
    for node in list(graph.nodes):
        if _splits(node):
            _Stack(program, graph, node, operators).replace()
    prune(graph)
    return program.evolve(graph=graph)


def _splits(node: fx.Node) -> bool:
    """Whether a call is a stack of plain layers: no projection of the state, no dropout that is on."""
    if node.op != "call_function" or operator_name(node) not in STACKS:
        return False
    call = Call.of(node)
    count = call["num_layers"] * (1 + call["bidirectional"]) * (4 if call["has_biases"] else 2)
    return len(call["params"]) == count and not (call["train"] and call["dropout"])


@dataclass
class _Stack:
    """One call that is being taken apart."""

    program: Program
    graph: fx.Graph
    node: fx.Node
    operators: Operators

    def replace(self) -> None:
        call = Call.of(self.node)
        with self.graph.inserting_before(self.node):
            x = call.arguments["input"]
            x = self._call(ops.aten.permute.default, x, [1, 0, 2]) if call["batch_first"] else x
            hidden, ends, cells = self._layers(x, call)
            hidden = self._call(ops.aten.permute.default, hidden, [1, 0, 2]) if call["batch_first"] else hidden
            for user in list(self.node.users):
                number = user.args[1]
                if number == 0:
                    user.replace_all_uses_with(hidden)
                else:
                    self._spread(user, ends if number == 1 else [self._cell(cell) for cell in cells])

    def _layers(self, x: fx.Node, call: Call) -> tuple[fx.Node, list[fx.Node], list[fx.Node]]:
        """The hidden units of the last layer; per layer and direction those at the end, and its call."""
        operator = getattr(ops.fxmerge, kind_of(operator_name(self.node))).default
        directions = 2 if call["bidirectional"] else 1
        each = 4 if call["has_biases"] else 2
        starts = call.arguments["hx"]
        starts = [starts] if isinstance(starts, fx.Node) else list(starts)
        ends: list[fx.Node] = []
        calls: list[fx.Node] = []
        for layer in range(call["num_layers"]):
            found = []
            for direction in range(directions):
                number = layer * directions + direction
                w, v, *biases = call.arguments["params"][number * each : (number + 1) * each]
                gates = self._call(ops.aten.linear.default, x, w, *biases[:1])
                states = [self._start(start, number) for start in starts]
                found.append(self._call(operator, gates, v, biases[1] if biases else None, *states, direction == 1))
                ends.append(self._call(ops.aten.select.int, found[-1], 0, 0 if direction else -1))
            calls += found
            x = self._call(ops.aten.cat.default, found, 2) if directions > 1 else found[0]
        return x, ends, calls

    def _start(self, states: fx.Node, number: int) -> fx.Node | None:
        """The first state of a layer; nothing where it is zero."""
        return None if self._is_zero(states) else self._call(ops.aten.select.int, states, 0, number)

    def _is_zero(self, node: fx.Node) -> bool:
        while (moved := self.operators.moved(node)) is not None:
            node = moved.source
        if node.op == "get_attr" and node.target not in self.program.parameters:
            return not bool(self.program.tensors[str(node.target)].count_nonzero())
        return self.operators.filling(node) == 0

    def _cell(self, layer: fx.Node) -> fx.Node:
        return self._call(ops.fxmerge.lstm_cell_state.default, *layer.args)

    def _call(self, target: Any, *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        node.meta = {"by": "split-recurrent"} | {k: v for k, v in self.node.meta.items() if k == "source"}
        return node

    # -- final states, layer by layer ------------------------------------------------------------------

    def _spread(self, node: fx.Node, states: list[fx.Node]) -> None:
        """Replace a value that is `states` stacked on its first axis, and what picks some of them, by these alone."""
        for user in list(node.users):
            call = Call.of(user) if user.op == "call_function" else None
            name = operator_name(user) if call is not None else ""
            if call is None:
                continue
            if name == "aten.select.int" and call["dim"] == 0:
                user.replace_all_uses_with(states[call["index"]])
            elif name == "aten.slice.Tensor" and call["dim"] == 0:
                self._spread(user, states[call["start"] : call["end"] : call["step"]])
            elif name == "aten.unbind.int" and call["dim"] == 0:
                for each in list(user.users):
                    each.replace_all_uses_with(states[each.args[1]])  # type: ignore[index]
            elif name == "aten.reshape.default" and self._rows(node, user) > 1:
                self._grid(user, states)
            elif (flat := self._side_by_side(user)) is not None:
                with self.graph.inserting_before(flat):
                    flat.replace_all_uses_with(self._call(ops.aten.cat.default, states, 1))
        if any(user.users or user.op == "output" for user in node.users):
            stacked = (
                (ops.aten.stack.default, states, 0) if len(states) > 1 else (ops.aten.unsqueeze.default, states[0], 0)
            )
            with self.graph.inserting_before(node):
                node.replace_all_uses_with(self._call(*stacked))

    def _rows(self, node: fx.Node, view: fx.Node) -> int:
        """How many rows of states a view [layers, directions, …] of stacked states has; 0 if it is another view."""
        before, after = tuple(node.meta["val"].shape), tuple(view.meta["val"].shape)
        same = len(after) == len(before) + 1 and after[2:] == before[1:] and after[0] * after[1] == before[0]
        return after[0] if same else 0

    def _grid(self, view: fx.Node, states: list[fx.Node]) -> None:
        """h.view(layers, directions, b, u)[layer]  -->  the states of that layer"""
        columns = int(view.meta["val"].shape[1])
        for user in list(view.users):
            call = Call.of(user) if user.op == "call_function" else None
            if call is not None and operator_name(user) == "aten.select.int" and call["dim"] == 0:
                row = call["index"] % (len(states) // columns)
                self._spread(user, states[row * columns : (row + 1) * columns])

    def _side_by_side(self, turned: fx.Node) -> fx.Node | None:
        """h.transpose(0, 1).reshape(b, -1): the call that puts all states side by side."""
        swaps = operator_name(turned) == "aten.transpose.int" and set(turned.args[1:]) == {0, 1}
        swaps |= operator_name(turned) == "aten.permute.default" and list(turned.args[1]) == [1, 0, 2]  # type: ignore[arg-type]
        if not swaps or len(turned.users) != 1:
            return None
        (user,) = turned.users
        flat = user.op == "call_function" and operator_name(user) == "aten.reshape.default"
        batch, width = turned.meta["val"].shape[0], turned.meta["val"].shape[1:].numel()
        return user if flat and tuple(user.meta["val"].shape) == (batch, width) else None
