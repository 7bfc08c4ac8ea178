"""An answer: one more output of a merged model with a gate, for rows whose task is not known.

choose   y_0, …, y_K, p  -->  y_i of every row, i its largest p; shorter ones filled with -inf
mix      y_0, …, y_K, p  -->  p_0 · y_0 + … + p_K · y_K
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from fxmerge.ir.program import Program

aten = torch.ops.aten


def add_answer(program: Program, gate: str, parts: Sequence[str], tie: float | None, name: str) -> Program:
    """The program with the output `name`, of the outputs `parts`, one a task, and the probabilities `gate`.

    Without a `tie` they are mixed; with one, a task must be likelier by so much than those before it to be chosen, so
    that rounding decides nothing.
    """
    graph, where = program.copy_graph()
    named = {port.name: (port, where[node]) for port, node in zip(program.outputs, program.result, strict=True)}
    ports, values = zip(*(named[part] for part in parts), strict=True)
    made = _Made(graph, named[gate][1], len(ports[0].shape))
    widest = max(ports, key=lambda port: port.shape[-1] if isinstance(port.shape[-1], int) else 0)
    if tie is None:
        answer = made.mixed(values, ports[0].dtype)
    else:
        missing = [0 if p.shape == widest.shape else widest.shape[-1] - p.shape[-1] for p in ports]
        answer = made.chosen([made.padded(v, n) for v, n in zip(values, missing, strict=True)], tie)
    last = next(iter(reversed(graph.nodes)))
    last.args = ((*last.args[0], answer),)
    return program.evolve(graph=graph, outputs=(*program.outputs, replace(widest, name=name)))


class _Made:
    """Calls in front of the outputs of a graph."""

    def __init__(self, graph: fx.Graph, gate: fx.Node, rank: int) -> None:
        self.graph, self.gate, self.rank = graph, gate, rank
        self.last = next(iter(reversed(graph.nodes)))

    def call(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        with self.graph.inserting_before(self.last):
            node = self.graph.call_function(target, args, kwargs)
        node.meta["by"] = "answer"
        return node

    def along_rows(self, value: fx.Node) -> fx.Node:
        """(rows)  -->  (rows, 1, …), as many axes as an output has"""
        for axis in range(1, self.rank):
            value = self.call(aten.unsqueeze.default, value, axis)
        return value

    def mixed(self, values: Sequence[fx.Node], dtype: torch.dtype) -> fx.Node:
        found: fx.Node | None = None
        for k, value in enumerate(values):
            share = self.call(aten._to_copy.default, self.call(aten.select.int, self.gate, 1, k), dtype=dtype)
            part = self.call(aten.mul.Tensor, value, self.along_rows(share))
            found = part if found is None else self.call(aten.add.Tensor, found, part)
        assert found is not None
        return found

    def chosen(self, values: Sequence[fx.Node], tie: float) -> fx.Node:
        """Task after task, one more likely than the likeliest so far takes its place."""
        found, best = values[0], self.call(aten.select.int, self.gate, 1, 0)
        for k, value in enumerate(values[1:], 1):
            share = self.call(aten.select.int, self.gate, 1, k)
            likelier = self.call(aten.gt.Tensor, share, self.call(aten.add.Scalar, best, tie))
            best = self.call(aten.where.self, likelier, share, best)
            found = self.call(aten.where.self, self.along_rows(likelier), value, found)
        return found

    def padded(self, value: fx.Node, missing: int) -> fx.Node:
        return self.call(aten.constant_pad_nd.default, value, [0, missing], float("-inf")) if missing else value
