"""Carry moves behind the calls that do not mind them, and write those that are left in one way.

    linear(reshape(permute(x)), W)                  -->   reshape(permute(linear(x, W)))
    attention on (batch · heads), tokens, width     -->   attention on batch, heads, tokens, width
    chunk, split, unbind                            -->   slice and select
    any chain of reshapes and permutes              -->   reshape, permute, reshape, where each is needed
    zeros_like(x), a buffer 0 1 2 …, …              -->   full, arange

Models of one mathematics that lay their axes out differently (tokens first, heads folded into the batch, rows
flattened) become the same program. The result computes the same function; each call sees the axes of its operands in
the order in which they stand in memory, so it is no slower.
"""

from __future__ import annotations

import operator

from torch import Tensor, fx

from fxmerge.ir.program import Program, target_name
from passes.line_up.carry_moves.integer_constants import constant_tensor
from passes.line_up.carry_moves.moved_view import Form, divided
from passes.line_up.carry_moves.through_calls import behind
from passes.line_up.carry_moves.through_moves import moved
from passes.line_up.carry_moves.view_graph import Value, Writer, aten
from passes.operators import OPERATORS, Operators


def carry_moves(program: Program, operators: Operators = OPERATORS) -> Program:
    """`program`, normalised, with its moves as late as they can stand, in one spelling.

    Raises `LineUpError` where the sizes of a move are such that it cannot be written again.
    """
    writer = Writer(program, operators)
    for node in program.graph.nodes:
        writer.node = node
        if node.op == "output":
            writer.graph.output(tuple(writer.tensor(result) for result in node.args[0]))
        elif node.op == "call_function":
            writer.values[node] = _call(writer, node)
        else:
            writer.values[node] = _leaf(writer, node)
    writer.graph.eliminate_dead_code()
    return program.evolve(graph=writer.graph)


def _leaf(writer: Writer, node: fx.Node) -> Form:
    if node.op == "get_attr":
        constant_tensor(writer, node)
        return writer.source(writer.graph.get_attr(str(node.target)), writer.measured[node])
    return writer.source(writer.graph.placeholder(str(node.target)), writer.measured[node])


def _call(writer: Writer, node: fx.Node) -> Value:
    if not isinstance(node.meta["val"], Tensor | tuple | list):
        return _number(writer, node)
    constant = constant_tensor(writer, node)
    if constant is not None:
        return constant
    first = writer.values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
    if target_name(node.target) == "operator.getitem" and isinstance(first, list):
        return first[node.args[1]]  # type: ignore[index]
    found = moved(writer, node, first) if isinstance(first, Form) else None
    found = found if found is not None else behind(writer, node)
    if found is not None:
        return found
    copy = writer.copy(node)
    return writer.source(copy, writer.measured[node]) if isinstance(node.meta["val"], Tensor) else copy


def _number(writer: Writer, node: fx.Node) -> Value:
    """A size, or something else that is no tensor: a constant, or computed from the dynamic sizes."""
    here, there = writer.measured[node]
    if here == there and _exact(writer, node):
        return here  # type: ignore[no-any-return]
    if not isinstance(here, int) or isinstance(here, bool) or here == there:
        return writer.copy(node)
    writer.sizes.learn((here, there), lambda: writer.copy(node))
    found = writer.sizes.argument((here, there), writer.graph)
    assert found is not None
    return found


def _exact(writer: Writer, node: fx.Node) -> bool:
    """Whether a number that two choices of the sizes agree on is the same for all of them.

    It is if no dynamic size is in it, and for sums, products and quotients without rest of sizes: the remainder of a
    division, say, may agree by chance.
    """
    if node.target is aten.sym_size.int:
        return True
    operands = [n for n in node.all_input_nodes if isinstance(writer.values[n], fx.Node)]
    if not operands:
        return True
    if any(writer.measured[n][0] == writer.measured[n][1] for n in operands):
        return False
    if node.target is not operator.floordiv:
        return node.target in (operator.add, operator.sub, operator.mul)
    a, b = (writer.measured[n] if isinstance(n, fx.Node) else (int(str(n)), int(str(n))) for n in node.args[:2])
    return 0 not in b and divided(a, b) is not None
