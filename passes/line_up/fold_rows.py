"""Add rows that are the same at every place to a table that is looked up beside them.

    embedding(P, places) + embedding(T, full(n)) + …   -->   embedding(P + T[n], places) + …

So a model with token types of which it uses one, or with a vector added to all tokens, has one table less, and lines
up with one that never had it.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, fx

from fxmerge.coupling import Call
from fxmerge.ir.program import Program
from passes.line_up.order_sums import is_sum, is_term, sum_of, terms_of
from passes.operators import OPERATORS, Operators
from passes.rewrites.common import called, rank, shape

EMBEDDING = "aten.embedding.default"
"""Tables and constants are looked for in the one spelling that carrying moves leaves."""


def fold_rows(program: Program, operators: Operators = OPERATORS) -> Program:
    """`program` with every row that its sums add at all places added to a table of theirs, where they have one."""
    graph, _ = program.copy_graph()
    tensors, folded = dict(program.tensors), []
    for node in list(graph.nodes):
        if not is_sum(node) or any(is_term(node, user) for user in node.users):
            continue
        terms = list(terms_of(node))
        for row in list(terms):
            value = _row(row, tensors, operators)
            table = next(_tables([term for term in terms if term is not row], program), None)
            left = [term for term in terms if term is not row]
            if value is None or table is None or value.numel() != table.meta["val"].shape[1]:
                continue
            if shape(node) not in map(shape, left):
                continue
            name = str(table.target)
            tensors[name] = (tensors[name].double() + value.double()).to(tensors[name].dtype)
            folded.append(name)
            terms = left
        if len(terms) < len(list(terms_of(node))):
            node.replace_all_uses_with(sum_of(graph, node, terms))
    if not folded:
        return program
    graph.eliminate_dead_code()
    note = f"{program.task}: a row that is added at every place is part of {', '.join(dict.fromkeys(folded))}"
    return program.evolve(graph=graph, tensors=tensors, notes=(*program.notes, note))


def _row(node: fx.Node, tensors: dict[str, Tensor], operators: Operators) -> Tensor | None:
    """The vector that a term adds at every place, if it adds one and the same."""
    if called(node, EMBEDDING):
        table, numbers = Call.of(node)["weight"], Call.of(node)["indices"]
        number = numbers.args[1] if called(numbers, "aten.full.default") else None
        held = tensors.get(str(table.target)) if table.op == "get_attr" else None
        return None if held is None or not isinstance(number, int) else held.detach()[number]
    width = shape(node)[-1] if rank(node) else 0
    while (moved := operators.moved(node)) is not None and not moved.by and not moved.cast:
        node = moved.source
    held = tensors.get(str(node.target)) if node.op == "get_attr" else None
    return held.detach().reshape(-1) if held is not None and held.numel() == width > 1 else None


def _tables(terms: list[fx.Node], program: Program) -> Iterator[fx.Node]:
    """The trained tables that these terms look up and nothing else reads; those of few rows, as places are, first."""
    found = []
    for term in terms:
        table = Call.of(term)["weight"] if called(term, EMBEDDING) else None
        if table is None or table.op != "get_attr" or table.target not in program.parameters:
            continue
        readers = [n for n in table.graph.nodes if n.op == "get_attr" and n.target == table.target]
        if len(readers) == 1 and len(table.users) == 1 and len(term.users) == 1:
            found.append(table)
    yield from sorted(found, key=lambda table: shape(table)[0])
