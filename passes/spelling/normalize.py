"""Write one thing one way: fewer spellings for every later pass, the same function.

    assertions, dropout, aliases, casts to the same dtype, slices of everything   -->   nothing
    view                                                                          -->   reshape
    addmm, matmul with a weight, written-out norms, activations and attention     -->   one operator each
    stacks of recurrent layers, and cells                                         -->   one call a layer and direction

What is written how is said by rewrites (see `passes.rewrites`).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, fx

from fxmerge.coupling import Call, RuleSet
from fxmerge.ir.program import Program, prune, target_name
from fxmerge.rewrite import Rewrite, Trace, apply
from passes.operators import Operators
from passes.rewrites import REWRITES
from passes.rewrites.common import called
from passes.rules import BUILTIN
from passes.spelling.cells_as_layers import cells_as_layers
from passes.spelling.split_recurrent import split_recurrent

REWRITTEN = ("aten.permute.default", "aten.reshape.default", "aten.copy.default")
"""Left to rewrites when they do nothing: other rewrites make more of them."""

ENDLESS = 1 << 31
"""A slice that ends here, or later, ends where its operand does."""

VIEWS = frozenset({"aten.view.default", "aten._unsafe_view.default"})
"""Reshapes that need their operand in memory as it was when its copies, which are no-ops here, were still there."""


def normalize(
    program: Program, rewrites: Iterable[Rewrite] = REWRITES, trace: Trace | None = None, rules: RuleSet = BUILTIN
) -> Program:
    """`program` without calls that do nothing, and with each operator in its one spelling."""
    operators = Operators(rules)
    return split_recurrent(
        cells_as_layers(apply(without_no_ops(program, operators), rewrites, trace, rules)), operators
    )


def without_no_ops(program: Program, operators: Operators) -> Program:
    """`program` without assertions and without calls that return their operand; its views are reshapes."""
    graph, _ = program.copy_graph()
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        name = target_name(node.target)
        if _returns_nothing(node):
            graph.erase_node(node)
        elif name in VIEWS:
            node.target = torch.ops.aten.reshape.default
        elif (operand := _returned(node, operators)) is not None:
            node.replace_all_uses_with(operand)
            graph.erase_node(node)
    prune(graph)
    return program.evolve(graph=graph)


def _returns_nothing(node: fx.Node) -> bool:
    """Whether a call has no result: it asserts something."""
    schema = getattr(node.target, "_schema", None)
    return schema is not None and not schema.returns and not node.users


def _returned(node: fx.Node, operators: Operators) -> fx.Node | None:
    """The operand that a call returns as it is."""
    moved = operators.moved(node)
    if moved is None or moved.cast or not isinstance(node.meta["val"], Tensor):
        return None
    same = moved.still and not called(node, *REWRITTEN)
    if target_name(node.target) == "aten.slice.Tensor":
        call = Call.of(node)
        end, size = call["end"], moved.source.meta["val"].shape[call.dim("dim", "self")]
        same = call["start"] in (None, 0) and call["step"] == 1 and (end is None or end >= ENDLESS or end == size)
    return moved.source if same else None
