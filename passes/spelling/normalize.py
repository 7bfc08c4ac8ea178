"""Write one thing one way: fewer spellings for every later pass, the same function.

    assertions, dropout, aliases, casts to the same dtype, slices of everything   -->   nothing
    view                                                                          -->   reshape
    addmm, matmul with a weight, written-out norms, activations and attention     -->   one operator each
    stacks of recurrent layers                                                    -->   one call a layer and direction

What is written how is said by rewrites (see `passes.rewrites`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from fxmerge.coupling import Call
from fxmerge.ir.program import Program, prune, target_name
from fxmerge.rewrite import Rewrite, Trace, apply
from passes.rewrites import REWRITES
from passes.spelling.split_recurrent import split_recurrent

ASSERTIONS = frozenset(
    {"aten._assert_tensor_metadata.default", "aten._assert_scalar.default", "aten._assert_async.msg"}
)
COPIES = ("alias", "detach", "lift_fresh_copy", "contiguous", "clone", "lift", "lift_fresh")
SAME = frozenset(f"aten.{name}.default" for name in COPIES)
"""Operators that return the numbers of their operand, whatever their arguments."""

CASTS = frozenset({"aten._to_copy.default", "aten.to.dtype", "aten.to.dtype_layout", "aten.type_as.default"})
ENDLESS = 1 << 31
"""A slice that ends here, or later, ends where its operand does."""

VIEWS = frozenset({"aten.view.default", "aten._unsafe_view.default"})
"""Reshapes that need their operand in memory as it was when its copies, which are no-ops here, were still there."""


def normalize(program: Program, rewrites: Iterable[Rewrite] = REWRITES, trace: Trace | None = None) -> Program:
    """`program` without calls that do nothing, and with each operator in its one spelling."""
    return split_recurrent(apply(without_no_ops(program), rewrites, trace))


def without_no_ops(program: Program) -> Program:
    """`program` without assertions and without calls that return their operand; its views are reshapes."""
    graph, _ = program.copy_graph()
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        name = target_name(node.target)
        if name in ASSERTIONS:
            graph.erase_node(node)
        elif name in VIEWS:
            node.target = torch.ops.aten.reshape.default
        elif (operand := _returned(node)) is not None:
            node.replace_all_uses_with(operand)
            graph.erase_node(node)
    prune(graph)
    return program.evolve(graph=graph)


def _returned(node: fx.Node) -> fx.Node | None:
    """The operand that a call returns as it is."""
    name = target_name(node.target)
    first = node.args[0] if node.args else None
    if not isinstance(first, fx.Node) or not isinstance(first.meta.get("val"), Tensor):
        return None
    value, before = node.meta["val"], first.meta["val"]
    if not isinstance(value, Tensor) or value.dtype != before.dtype or value.device != before.device:
        return None
    call = Call.of(node)
    same = name in SAME or name in CASTS
    if name in ("aten.dropout.default", "aten.feature_dropout.default"):
        same = not call["train"] or call["p"] == 0
    elif name == "aten.expand.default":
        same = value.shape == before.shape
    elif name == "aten.slice.Tensor":
        end, size = call["end"], before.shape[call.dim("dim", "self")]
        same = call["start"] in (None, 0) and call["step"] == 1 and (end is None or end >= ENDLESS or end == size)
    return first if same else None
