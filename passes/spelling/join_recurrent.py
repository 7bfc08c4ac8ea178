"""Write recurrent layers as torch's own operators again, with the map from the input to the gates inside.

    lstm(linear(x, W, b), V, c)                      -->   aten.lstm(x, [0, 0], [W, V, b, c])[0]
    gates that no linear call made                   -->   W is the identity
    in reverse                                       -->   x and the result flipped
    two layers that read one x, one of them in reverse   -->   one call in both directions

Every runtime knows these, and files that hold them are read without fxmerge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, ops

from fxmerge.coupling import Call, operator_name
from fxmerge.ir.program import Program, prune
from passes.rewrites.common import called
from passes.rules.recurrent import LAST_CELL, LAYERS, kind_of


def join_recurrent(program: Program) -> Program:
    """`program` with every recurrent layer of our own as a call of torch's."""
    if not any(called(node, *LAYERS, LAST_CELL) for node in program):
        return program
    graph, _ = program.copy_graph()
    joiner = _Joiner(graph, dict(program.tensors))
    for forward, back in _pairs(graph):
        joiner.both(forward, back)
    prune(graph)
    for node in list(graph.nodes):
        if called(node, *LAYERS, LAST_CELL):
            joiner.one(node)
    prune(graph)
    return program.evolve(graph=graph, tensors=joiner.tensors)


def _pairs(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Two layers that start at zero and read one input, the second in reverse."""
    waiting: dict[Any, fx.Node] = {}
    for node in graph.nodes:
        linear = _linear_before(node) if called(node, *LAYERS) else None
        if linear is None:
            continue
        call = Call.of(node)
        weights = _weights(call)
        if _given(call) or not all(w is None or w.op == "get_attr" for w in weights):
            continue
        key = (linear.args[0], node.target, node.meta["val"].shape, [w is None for w in weights])
        other = waiting.pop((repr(key), not call["reverse"]), None)
        if other is None:
            waiting[repr(key), call["reverse"]] = node
        else:
            yield (other, node) if call["reverse"] else (node, other)


def _linear_before(layer: fx.Node) -> fx.Node | None:
    """The linear call that makes the gates of a layer."""
    gates: Any = layer.args[0]
    return gates if called(gates, "aten.linear.default") else None


def _weights(call: Call) -> list[fx.Node | None]:
    """W, V, b and c of a layer; the identity, and nothing, for W and b of gates that no linear call made."""
    linear = _linear_before(call.node)
    own = Call.of(linear).arguments if linear is not None else {}
    return [own.get("weight"), call.arguments["weight"], own.get("bias"), call.arguments["bias"]]


def _given(call: Call) -> dict[str, fx.Node]:
    """The states that a layer starts with, where they were given."""
    found = {name: call.arguments.get(name) for name in ("state", "cell")}
    return {name: state for name, state in found.items() if state is not None}


def _like(call: Call) -> Tensor:
    """A tensor of the type and on the device of a layer's numbers."""
    value: Tensor = call.node.meta["val"]
    return torch.empty(0, dtype=value.dtype, device=value.device)


@dataclass
class _Joiner:
    graph: fx.Graph
    tensors: dict[str, Tensor]
    made: dict[str, fx.Node] = field(default_factory=dict)

    def one(self, layer: fx.Node) -> None:
        """A layer in one direction."""
        call, linear = Call.of(layer), _linear_before(layer)
        with self.graph.inserting_before(layer):
            x: Any = layer.args[0] if linear is None else linear.args[0]
            x = self._call(layer, ops.aten.flip.default, x, [0]) if call["reverse"] else x
            run = self._run(layer, x, [call])
            if operator_name(layer) == LAST_CELL:
                result = self._call(layer, ops.aten.select.int, self._call(layer, getitem, run, 2), 0, 0)
            else:
                result = self._call(layer, getitem, run, 0)
                result = self._call(layer, ops.aten.flip.default, result, [0]) if call["reverse"] else result
        layer.replace_all_uses_with(result)

    def both(self, forward: fx.Node, back: fx.Node) -> None:
        """Two layers in opposite directions."""
        calls, width = [Call.of(forward), Call.of(back)], forward.meta["val"].shape[-1]
        linear, first = _linear_before(forward), min(forward, back)
        assert linear is not None
        for weight in (w for call in calls for w in _weights(call) if w is not None):
            first.prepend(weight)  # the new call stands where the first of the two stood
        beside = [n for n in forward.users if called(n, "aten.cat.default") and n.args[0] == [forward, back]]
        with self.graph.inserting_before(first):
            result = self._call(forward, getitem, self._run(forward, linear.args[0], calls), 0)
            for node in beside:
                if len(node.args) > 1 and node.args[1] in (2, -1):
                    node.replace_all_uses_with(result)
            for number, layer in enumerate((forward, back)):
                own = self._call(layer, ops.aten.slice.Tensor, result, 2, number * width, (number + 1) * width)
                layer.replace_all_uses_with(own)

    def _run(self, like: fx.Node, x: Any, calls: Sequence[Call]) -> fx.Node:
        """One call of torch's operator: one layer in one direction or in both."""
        kind = kind_of(operator_name(like))
        states = self._states(like, x, calls, 2 if kind == "lstm" else 1)
        biased = any(w is not None for call in calls for w in _weights(call)[2:])
        weights = [w for call in calls for w in self._all_weights(call, biased)]
        hx: Any = states if kind == "lstm" else states[0]
        target = getattr(ops.aten, kind).input
        return self._call(like, target, x, hx, weights, biased, 1, 0.0, False, len(calls) > 1, False)

    def _all_weights(self, call: Call, biased: bool) -> list[fx.Node]:
        w, v, *biases = _weights(call)
        size = int(call.shape("weight")[0])
        like = _like(call)
        w = w if w is not None else self._constant(f"identity_{size}", torch.eye(size).to(like))
        zero = self._constant(f"no_bias_{size}", torch.zeros(size).to(like)) if biased and None in biases else None
        assert v is not None
        return [w, v, *(b if b is not None else zero for b in biases if biased)]  # type: ignore[list-item]

    def _constant(self, name: str, value: Tensor) -> fx.Node:
        while name in self.tensors and name not in self.made:
            name = f"{name}_"
        if name not in self.made:
            self.tensors[name] = value
            with self.graph.inserting_before(next(iter(self.graph.nodes))):
                self.made[name] = self.graph.get_attr(name)
        return self.made[name]

    def _states(self, like: fx.Node, x: Any, calls: Sequence[Call], count: int) -> list[fx.Node]:
        """What the layers start with, one row a direction."""
        value = like.meta["val"]
        batch = self._call(like, ops.aten.sym_size.int, x, 1)
        zeros = self._call(like, ops.aten.zeros.default, [len(calls), batch, value.shape[-1]])
        zeros.kwargs = {"dtype": value.dtype, "device": value.device}
        given = _given(calls[0])
        states = [given.get(name) for name in ("state", "cell")[:count]]
        return [zeros if s is None else self._call(like, ops.aten.unsqueeze.default, s, 0) for s in states]

    def _call(self, like: fx.Node, target: Any, *args: Any) -> fx.Node:
        node = self.graph.call_function(target, args)
        node.meta = {"by": "join-recurrent"} | {k: v for k, v in like.meta.items() if k == "source"}
        return node
