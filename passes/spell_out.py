"""Spell out operators that only one library knows in operators that everybody knows, ONNX too."""

from __future__ import annotations

from torch import fx, ops

from fxmerge.coupling import operator_name
from fxmerge.ir.program import Program

GROUPED = ("transformers.grouped_mm_fallback.default", "aten._grouped_mm.default")


def spell_out(program: Program) -> Program:
    """`program` with grouped matrix products written as plain ones."""
    if not any(_is_grouped(node) for node in program):
        return program
    graph, _ = program.copy_graph()
    for node in list(graph.nodes):
        if _is_grouped(node):
            with graph.inserting_before(node):
                node.replace_all_uses_with(_grouped(graph, *node.args[:3]))
            graph.erase_node(node)
    return program.evolve(graph=graph)


def _is_grouped(node: fx.Node) -> bool:
    return node.op == "call_function" and operator_name(node) in GROUPED and len(node.args) == 3 and not node.kwargs


def _grouped(graph: fx.Graph, rows: fx.Node, weight: fx.Node, ends: fx.Node) -> fx.Node:
    """grouped_mm(x[s,k], w[e,k,n], ends[e])  -->  sum over e of where(ends[e-1] <= s < ends[e], x @ w[e], 0)

    Every expert sees every row and the rows of others are dropped: more work than the operator itself, and exact.
    """
    aten, call = ops.aten, graph.call_function
    count = call(aten.sym_size.int, (rows, 0))
    place = call(aten.unsqueeze.default, (call(aten.arange.default, (count,)), 0))
    starts = call(aten.constant_pad_nd.default, (call(aten.slice.Tensor, (ends, 0, 0, -1)), [1, 0], 0))
    begun = call(aten.ge.Tensor, (place, call(aten.unsqueeze.default, (starts, 1))))
    going = call(aten.lt.Tensor, (place, call(aten.unsqueeze.default, (ends, 1))))
    own = call(aten.unsqueeze.default, (call(aten.logical_and.default, (begun, going)), 2))
    products = call(aten.matmul.default, (call(aten.unsqueeze.default, (rows, 0)), weight))
    return call(aten.sum.dim_IntList, (call(aten.where.ScalarOther, (own, products, 0)), [0]))
