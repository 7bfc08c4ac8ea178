"""Give calls the tensors that they leave out and their partners have: a bias of zeros, a scale of ones.

    linear(x, W) beside linear(x, V, c)   -->   linear(x, W, 0) beside linear(x, V, c)

Exporters drop what changes nothing, so of two files written by the same code one may have a bias, the other none.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import fx

from fxmerge.coupling import Call
from fxmerge.errors import LineUpError
from fxmerge.ir.program import Program
from passes.line_up.pairs import pair_values
from passes.operators import Operators


@dataclass(frozen=True)
class Left:
    """An operand that a call leaves out: its name, the shape it would have, and the number that changes nothing."""

    node: fx.Node
    name: str
    shape: tuple[int, ...]
    number: float


def fill_in(parents: Sequence[Program], template: int, operators: Operators) -> list[Program]:
    """`parents` with what calls leave out and their partners in any other have; those that lack nothing are the same.

    Raises `LineUpError` if they part elsewhere too.
    """
    found = list(parents)
    for k in range(len(found)):  # the template gets what any other has
        if k != template:
            found[template], found[k] = _filled(found[template], found[k], operators)
    for k in range(len(found)):  # and the others what the template has got since
        if k != template:
            found[template], found[k] = _filled(found[template], found[k], operators)
    return found


def fill_like(parents: Sequence[Program], operators: Operators) -> list[Program]:
    """`parents` with all that calls leave out and that calls of the same operator have, in whichever parent.

    For parents of which no pairs are known yet, since their depth or their heads differ too.
    """
    like: dict[tuple[object, str], fx.Node] = {}
    for node in (node for program in parents for node in program.graph.nodes if node.op == "call_function"):
        for name in operators.neutral(node):
            if dict(Call.of(node).operands).get(name) is not None:
                like.setdefault((node.target, name), node)
    return [
        _with(each, [left for node in each.graph.nodes for left in _lacking(node, like, operators)]) for each in parents
    ]


def _lacking(node: fx.Node, like: Mapping[tuple[object, str], fx.Node], operators: Operators) -> Iterator[Left]:
    """What a call leaves out that another call of its operator has."""
    for name in operators.neutral(node) if node.op == "call_function" else ():
        if (node.target, name) in like:
            yield from (left for left in _left_out(node, like[node.target, name], operators) if left.name == name)


def _filled(template: Program, other: Program, operators: Operators) -> tuple[Program, Program]:
    if len(template.outputs) != len(other.outputs):
        raise LineUpError("they have other numbers of outputs", "merge models with the same outputs")
    roots = list(zip(template.result, other.result, strict=True))
    pairs = pair_values(template, other, roots, operators, bare=True)
    ours = [each for a, b in pairs.items() for each in _left_out(a, b, operators)]
    theirs = [each for a, b in pairs.items() for each in _left_out(b, a, operators)]
    return _with(template, ours), _with(other, theirs)


def _left_out(node: fx.Node, partner: fx.Node, operators: Operators) -> Iterator[Left]:
    """What a call leaves out that its partner has."""
    if node.op != "call_function":
        return
    has, given = dict(Call.of(node).operands), dict(Call.of(partner).operands)
    for name, number in operators.neutral(node).items():
        if has.get(name) is None and given.get(name) is not None:
            shape = operators.neutral_shape(node, partner, name)
            if shape is not None:
                yield Left(node, name, shape, number)


def _with(program: Program, left: Sequence[Left]) -> Program:
    """`program` with these operands as parameters that change nothing."""
    if not left:
        return program
    graph, where = program.copy_graph()
    tensors, parameters = dict(program.tensors), set(program.parameters)
    for each in left:
        node = where[each.node]
        name = _name(node, each.name, tensors)
        dtype = next(n.meta["val"].dtype for n in node.all_input_nodes if n.meta["val"].is_floating_point())
        tensors[name] = torch.full(each.shape, each.number, dtype=dtype)
        parameters.add(name)
        with graph.inserting_before(node):
            tensor = graph.get_attr(name)
        tensor.meta = {"by": "fill-in"}
        node.args, node.kwargs = _given(node, each.name, tensor)
    said = (
        f"{program.task}: {len(left)} biases or scales that its calls leave out, and other parents have, change nothing"
    )
    return program.evolve(graph=graph, tensors=tensors, parameters=frozenset(parameters), notes=(*program.notes, said))


def _given(
    node: fx.Node, name: str, value: fx.Node
) -> tuple[tuple[fx.node.Argument, ...], dict[str, fx.node.Argument]]:
    """The arguments of a call with one more."""
    place = [each.name for each in node.target._schema.arguments].index(name)  # type: ignore[union-attr]
    if place < len(node.args):
        return (*node.args[:place], value, *node.args[place + 1 :]), dict(node.kwargs)
    return node.args, {**node.kwargs, name: value}


def _name(node: fx.Node, operand: str, taken: dict[str, torch.Tensor]) -> str:
    """A name for an operand of a call, beside the name of the call's own tensor."""
    own = next((str(n.target) for n in node.all_input_nodes if n.op == "get_attr"), node.name)
    name = f"{own.rpartition('.')[0] or own}.{operand}"
    while name in taken:
        name += "_"
    return name
