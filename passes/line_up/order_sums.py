"""Write sums in one order: (a + b) + c and a + (c + b) become the same chain of additions."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from fxmerge.coupling import Call
from fxmerge.ir.program import Program
from passes.line_up.digests import StructureOf
from passes.operators import OPERATORS, Operators
from passes.rewrites.common import called, is_tensor

ADD = "aten.add.Tensor"
"""A sum is written anew with torch's own addition, so that is what is taken apart; other sums stay as they are."""


def order_sums(program: Program, operators: Operators = OPERATORS) -> Program:
    """`program` with the terms of every sum of three or more in an order that does not depend on how it was written."""
    hashes = program.get(StructureOf(operators)).hashes
    graph, where = program.copy_graph()
    rank = {where[node]: number for node, number in hashes.items()}
    changed = False
    for node in list(graph.nodes):
        if is_sum(node) and not any(is_term(node, user) for user in node.users):
            terms = list(terms_of(node))
            if len(terms) > 2:
                changed = True
                node.replace_all_uses_with(sum_of(graph, node, sorted(terms, key=lambda term: rank[term])))
    graph.eliminate_dead_code()
    return program.evolve(graph=graph) if changed else program


def is_sum(node: fx.Node) -> bool:
    """Whether a node is a plain sum of two tensors."""
    return called(node, ADD) and all(is_tensor(n) for n in node.args[:2]) and Call.of(node)["alpha"] == 1


def is_term(node: fx.Node, user: fx.Node) -> bool:
    """Whether a sum is a term of another sum of the same dtype, and of nothing else."""
    same = node.meta["val"].dtype == user.meta["val"].dtype if is_tensor(user) else False
    return is_sum(user) and len(node.users) == 1 and same and user.args[0] is not user.args[1]


def terms_of(node: fx.Node) -> Iterator[fx.Node]:
    for term in node.args[:2]:
        assert isinstance(term, fx.Node)
        if is_sum(term) and is_term(term, node):
            yield from terms_of(term)
        else:
            yield term


def sum_of(graph: fx.Graph, node: fx.Node, terms: list[fx.Node]) -> fx.Node:
    total = terms[0]
    with graph.inserting_before(node):
        for term in terms[1:]:
            total = graph.call_function(torch.ops.aten.add.Tensor, (total, term))
            total.meta = {"by": "order-sums", "val": node.meta["val"]}
            if "source" in node.meta:
                total.meta["source"] = node.meta["source"]
    return total
