"""What a model computes from numbers alone becomes a table that it holds.

    sin(t · exp(arange(4) · −c))        -->   sin(t · f)          frequencies of a time embedding
    x + cat(sin(p), cos(p))             -->   x + table           positions as sines and cosines

Calls that count to other numbers are other calls; tables of other lengths line up as those do that a model registers.
"""

from __future__ import annotations

from torch import Tensor, fx

from fxmerge.coupling import has_tensor
from fxmerge.coupling.constants import Constants
from fxmerge.ir.program import Program
from passes.operators import OPERATORS, Operators, is_random


def hold_constants(program: Program, operators: Operators = OPERATORS) -> Program:
    """`program` with a buffer for every floating value that it computes from numbers, at sizes that are fixed."""
    constants = Constants(program, operators.rules, program.parameters)
    known = _from_numbers(program, operators)
    graph, where = program.copy_graph()
    tensors = dict(program.tensors)
    for node in known:
        value = constants.value(node) if _is_table(node, operators) and not set(node.users) <= known.keys() else None
        if value is None:
            continue
        name = _free(tensors)
        tensors[name] = value.detach().to(node.meta["val"].dtype).contiguous()
        with graph.inserting_before(where[node]):
            held = graph.get_attr(name)
        held.meta = {"by": "hold-constants", "source": node.meta.get("source")}
        where[node].replace_all_uses_with(held)
    if len(tensors) == len(program.tensors):
        return program
    graph.eliminate_dead_code()
    return program.evolve(graph=graph, tensors=tensors)


def _from_numbers(program: Program, operators: Operators) -> dict[fx.Node, None]:
    """The values that depend on no input, no dynamic size and no tensor of the model but single numbers, in order."""
    found: dict[fx.Node, None] = {}
    for node in program.graph.nodes:
        if node.op == "get_attr":
            number = node.target not in program.parameters and node.target not in program.maps
            if number and program.tensors[str(node.target)].ndim == 0:
                found[node] = None
        elif node.op == "call_function" and has_tensor(node) and not is_random(node):
            rule = operators.rules.find(node)
            fills = rule is not None and rule.fills == "value"
            below = node.all_input_nodes
            if all(n in found for n in below) and (fills or bool(below)):
                found[node] = None
    return found


def _is_table(node: fx.Node, operators: Operators) -> bool:
    """Whether a value is a tensor of several real numbers, not all one that its call names."""
    value, rule = node.meta.get("val"), operators.rules.find(node) if node.op == "call_function" else None
    if rule is None or rule.number is not None or not isinstance(value, Tensor):
        return False
    return value.is_floating_point() and value.numel() > 1


def _free(tensors: dict[str, Tensor]) -> str:
    number = 0
    while f"constant{number}" in tensors:
        number += 1
    return f"constant{number}"
