"""Write one step of a recurrent layer as a layer of one step, so that what is known of layers is known of cells.

gru_cell(x, h, W, V, b, c)           -->   gru(linear(x, W, b)[None], V, c, h)[0]
lstm_cell(x, [h, d], W, V, b, c)     -->   the same with two states; the cell is `lstm_cell_state`
"""

from __future__ import annotations

from torch import fx, ops

import passes.spelling.recurrent_layer  # noqa: F401  (registers the operators)
from fxmerge.coupling import Call, operator_name
from fxmerge.ir.program import Program, prune
from passes.rules.recurrent import CELLS, kind_of


def cells_as_layers(program: Program) -> Program:
    """`program` with every cell that takes rows of inputs as a layer."""
    if not any(_is_cell(node) for node in program):
        return program
    graph, _ = program.copy_graph()
    for node in list(graph.nodes):
        if _is_cell(node):
            _replace(graph, node)
    prune(graph)
    return program.evolve(graph=graph)


def _is_cell(node: fx.Node) -> bool:
    if node.op != "call_function" or operator_name(node) not in CELLS:
        return False
    x = Call.of(node).arguments["input"]
    return isinstance(x, fx.Node) and x.meta["val"].ndim == 2


def _replace(graph: fx.Graph, node: fx.Node) -> None:
    kind, given = kind_of(operator_name(node)), Call.of(node).arguments
    states = [given["hx"]] if isinstance(given["hx"], fx.Node) else list(given["hx"])

    def call(target: object, *args: object) -> fx.Node:
        made = graph.call_function(target, args)  # type: ignore[arg-type]
        made.meta = {"by": "cells-as-layers"} | {k: v for k, v in node.meta.items() if k == "source"}
        return made

    with graph.inserting_before(node):
        gates = call(
            ops.aten.unsqueeze.default, call(ops.aten.linear.default, given["input"], given["w_ih"], given["b_ih"]), 0
        )
        rest = (given["w_hh"], given["b_hh"], *states, False)
        steps = call(getattr(ops.fxmerge, kind).default, gates, *rest)
        hidden = call(ops.aten.select.int, steps, 0, 0)
        if kind != "lstm":
            node.replace_all_uses_with(hidden)
            return
        for user in list(node.users):
            cell = user.args[1] == 1
            user.replace_all_uses_with(call(ops.fxmerge.lstm_cell_state.default, gates, *rest) if cell else hidden)
