"""Spell out calls that only one library knows in calls that everybody knows, ONNX too."""

from __future__ import annotations

from torch import fx, ops

from fxmerge.coupling import operator_name
from fxmerge.ir.program import Program
from passes.rewrites.common import called, rank, shape

ATTENTION = "aten.scaled_dot_product_attention.default"
GROUPED = ("transformers.grouped_mm_fallback.default", "aten._grouped_mm.default")


def lower_to_onnx(program: Program) -> Program:
    """`program` with grouped matrix products written as plain ones, and attention with four axes."""
    if not any(_is_grouped(node) or _is_odd_attention(node) for node in program):
        return program
    graph, _ = program.copy_graph()
    for node in list(graph.nodes):
        if _is_grouped(node):
            with graph.inserting_before(node):
                node.replace_all_uses_with(_grouped(graph, *node.args[:3]))
            graph.erase_node(node)
        elif _is_odd_attention(node):
            with graph.inserting_after(node):
                result = _four_axes(graph, node)
            node.replace_all_uses_with(result, delete_user_cb=lambda user, result=result: user is not result)
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


def _is_odd_attention(node: fx.Node) -> bool:
    """Whether a call is attention of other than four axes that can be had with four."""
    if not called(node, ATTENTION) or len(node.args) < 3 or rank(node) == 4:
        return False
    before = rank(node) - 3
    same = all(shape(value)[:before] == shape(node)[:before] for value in node.args[:3])  # type: ignore[arg-type]
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    return rank(node) >= 3 and same and (not isinstance(mask, fx.Node) or rank(mask) <= 3)


def _four_axes(graph: fx.Graph, node: fx.Node) -> fx.Node:
    """attention(q[b,l,d], …)  -->  attention(q[b,1,l,d], …)[:, 0];  attention(q[a,b,h,l,d], …) over a b as one axis"""
    aten, call = ops.aten, graph.call_function
    values = [value for value in node.all_input_nodes if rank(value) == rank(node)]
    four: dict[fx.Node, fx.Node] = {}
    with graph.inserting_before(node):
        if rank(node) == 3:
            four = {value: call(aten.unsqueeze.default, (value, 1)) for value in values}
        else:
            four = {value: call(aten.flatten.using_ints, (value, 0, rank(node) - 4)) for value in values}
        sizes = [-1, *(_size(graph, node, axis) for axis in range(1, rank(node)))]
    for value, other in four.items():
        node.replace_input_with(value, other)
    if rank(node) == 3:
        return call(aten.squeeze.dim, (node, 1))
    return call(aten.reshape.default, (node, sizes))


def _size(graph: fx.Graph, node: fx.Node, axis: int) -> int | fx.Node:
    """The size of an axis of an attention's result: a number, or where it comes from."""
    size = node.meta["val"].shape[axis]
    value = node.args[2] if axis == rank(node) - 1 else node.args[0]
    return size if isinstance(size, int) else graph.call_function(ops.aten.sym_size.int, (value, axis))
