"""Write one thing one way: fewer spellings for every later pass, the same function.

    addmm(b, x, W)                          -->  linear(x, permute(W), b)
    view(linear(view(x, 2-d), W, b), n-d)   -->  linear(x, W, b)
    x · rsqrt(mean(x²) + ε)                 -->  rms_norm(x, ε)
    assertions, dropout, aliases, no-op slices and casts  -->  nothing
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.ir.program import Program, target_name

aten = torch.ops.aten

ASSERTIONS = frozenset({"aten._assert_tensor_metadata.default", "aten._assert_scalar.default", "aten._assert_async.msg"})
SAME = frozenset(
    f"aten.{name}.default" for name in ("alias", "detach", "lift_fresh_copy", "contiguous", "clone", "lift", "lift_fresh")
)


def normalize(program: Program) -> Program:
    """`program` with its operators in their one spelling and dead nodes gone."""
    graph, _ = program.copy_graph()
    for node in list(graph.nodes):
        if node.op == "call_function" and target_name(node.target) in ASSERTIONS:
            graph.erase_node(node)
    for node in list(graph.nodes):
        for rule in RULES:
            if node.op != "call_function":
                break
            with graph.inserting_before(node):
                new = rule(node, graph)
            if new is not None:
                if new.op == "call_function" and "val" not in new.meta:
                    new.meta = {k: v for k, v in node.meta.items()} | {"by": f"normalize:{rule.__name__.strip('_')}"}
                node.replace_all_uses_with(new)
                graph.erase_node(node)
                break
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.op == "call_function":
            with graph.inserting_before(node):
                new = _flat_linear(node, graph)
            if new is not None:
                new.meta = dict(node.meta) | {"by": "normalize:flat_linear"}
                node.replace_all_uses_with(new)
    graph.eliminate_dead_code()
    return program.evolve(graph=graph)


def _no_op(node: fx.Node, graph: fx.Graph) -> fx.Node | None:
    """Calls that return their operand."""
    name = target_name(node.target)
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node) or not isinstance(first.meta.get("val"), Tensor):
        return None
    value, before = node.meta["val"], first.meta["val"]
    if not isinstance(value, Tensor):
        return None
    if name in SAME:
        return first
    if name in ("aten.dropout.default", "aten.feature_dropout.default") and not node.args[2]:
        return first
    if name == "aten._to_copy.default" and value.dtype == before.dtype and value.device == before.device:
        return first
    if name in ("aten.to.dtype", "aten.to.dtype_layout", "aten.type_as.default") and value.dtype == before.dtype:
        return first
    if name == "aten.slice.Tensor":
        _, axis, start, end, step = (*node.args, *(None,) * (5 - len(node.args)))
        whole = start in (None, 0) and step in (None, 1) and (end is None or (isinstance(end, int) and end >= 1 << 31))
        return first if whole or (start in (None, 0) and step in (None, 1) and end == before.shape[axis or 0]) else None  # type: ignore[index]
    if name in ("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default"):
        return None
    return None


def _one_view(node: fx.Node, graph: fx.Graph) -> fx.Node | None:
    if target_name(node.target) in ("aten._unsafe_view.default", "aten.view.default"):
        return graph.call_function(aten.reshape.default, node.args, node.kwargs)
    return None


def _one_permute(node: fx.Node, graph: fx.Graph) -> fx.Node | None:
    name = target_name(node.target)
    if name == "aten.t.default":
        order = [1, 0] if node.meta["val"].ndim == 2 else [0]
    elif name == "aten.transpose.int":
        rank = node.meta["val"].ndim
        order = list(range(rank))
        a, b = int(node.args[1]) % rank, int(node.args[2]) % rank  # type: ignore[arg-type]
        order[a], order[b] = order[b], order[a]
    else:
        return None
    return graph.call_function(aten.permute.default, (node.args[0], order))


def _addmm(node: fx.Node, graph: fx.Graph) -> fx.Node | None:
    if target_name(node.target) != "aten.addmm.default" or node.kwargs:
        return None
    bias, x, weight = node.args
    if bias.meta["val"].ndim != 1 or not _is_parameter(weight):  # type: ignore[union-attr]
        return None
    return graph.call_function(aten.linear.default, (x, _turned(weight, graph), bias))


def _matmul(node: fx.Node, graph: fx.Graph) -> fx.Node | None:
    if target_name(node.target) not in ("aten.mm.default", "aten.matmul.default"):
        return None
    x, weight = node.args
    if not _is_parameter(weight) or weight.meta["val"].ndim != 2 or x.meta["val"].ndim < 2:  # type: ignore[union-attr]
        return None
    return graph.call_function(aten.linear.default, (x, _turned(weight, graph)))


def _rms_norm(node: fx.Node, graph: fx.Graph) -> fx.Node | None:
    """x · rsqrt(mean(x²) + ε), in either order, or x / sqrt(mean(x²) + ε)."""
    name = target_name(node.target)
    if name not in ("aten.mul.Tensor", "aten.div.Tensor") or node.kwargs:
        return None
    for x, scale in ((node.args[0], node.args[1]), (node.args[1], node.args[0])):
        epsilon = _root_mean_square(x, scale, "aten.rsqrt.default" if name == "aten.mul.Tensor" else "aten.sqrt.default")
        if epsilon is not None:
            width = x.meta["val"].shape[-1]  # type: ignore[union-attr]
            return graph.call_function(aten.rms_norm.default, (x, [int(width)], None, epsilon))
        if name == "aten.div.Tensor":
            break
    return None


def _root_mean_square(x: Any, scale: Any, root: str) -> float | None:
    """ε if `scale` is (r)sqrt(mean(x²) + ε) over the last axis."""
    total = _call(scale, root, "aten.pow.Tensor_Scalar")
    if total is None or (target_name(scale.target) == "aten.pow.Tensor_Scalar" and scale.args[1] != (-0.5 if "rsqrt" in root else 0.5)):
        return None
    plus = _call(total.args[0], "aten.add.Tensor", "aten.add.Scalar")
    if plus is None:
        return None
    mean, epsilon = plus.args[0], plus.args[1]
    mean_call = _call(mean, "aten.mean.dim")
    if mean_call is None or not isinstance(epsilon, float) or len(mean_call.args) < 3 or not mean_call.args[2]:
        return None
    rank = x.meta["val"].ndim if isinstance(x, fx.Node) else 0
    axes = [int(a) % rank for a in mean_call.args[1]] if rank else []  # type: ignore[arg-type, union-attr]
    square = _call(mean_call.args[0], "aten.pow.Tensor_Scalar", "aten.mul.Tensor", "aten.square.default")
    if axes != [rank - 1] or square is None or square.args[0] is not x:
        return None
    second = 2 if len(square.args) < 2 else square.args[1]
    return epsilon if second in (2, 2.0) or second is x else None


def _call(node: Any, *names: str) -> fx.Node | None:
    found = isinstance(node, fx.Node) and node.op == "call_function" and target_name(node.target) in names
    return node if found else None


def _flat_linear(node: fx.Node, graph: fx.Graph) -> fx.Node | None:
    """A linear call on rows that were flattened before and restored after."""
    after = _call(node, "aten.reshape.default")
    linear = _call(after.args[0], "aten.linear.default") if after is not None else None
    before = _call(linear.args[0], "aten.reshape.default") if linear is not None else None
    if after is None or linear is None or before is None or len(linear.users) > 1:
        return None
    x = before.args[0]
    source, flat = x.meta["val"].shape, before.meta["val"].shape  # type: ignore[union-attr]
    result = after.meta["val"].shape
    if source[-1] != flat[-1] or source[:-1] != result[:-1] or result[-1] != linear.meta["val"].shape[-1]:
        return None
    return graph.call_function(aten.linear.default, (x, *linear.args[1:]), linear.kwargs)


def _turned(weight: Any, graph: fx.Graph) -> fx.Node:
    """The transpose of a weight; a transpose of a transpose is the weight."""
    inner = _call(weight, "aten.permute.default")
    if inner is not None and list(inner.args[1]) == [1, 0]:  # type: ignore[arg-type]
        return inner.args[0]  # type: ignore[return-value]
    node = graph.call_function(aten.permute.default, (weight, [1, 0]))
    node.meta = {"by": "normalize:turned", "val": weight.meta["val"].T}
    return node


def _is_parameter(node: Any) -> bool:
    """Whether a value is a tensor of the program behind moves of one operand."""
    while isinstance(node, fx.Node) and node.op == "call_function" and node.target is not operator.getitem:
        if target_name(node.target) not in ("aten.permute.default", "aten.t.default", "aten.transpose.int", "aten._to_copy.default"):
            return False
        node = node.args[0]
    return isinstance(node, fx.Node) and node.op == "get_attr"


RULES: tuple[Callable[[fx.Node, fx.Graph], fx.Node | None], ...] = (
    _no_op,
    _one_view,
    _one_permute,
    _addmm,
    _matmul,
    _rms_norm,
)
