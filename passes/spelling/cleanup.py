"""Say everything once: equal calls become one, unused nodes and tensors go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import fx

from fxmerge.ir.program import Program, prune
from fxmerge.pipeline import Known, Pass
from passes.operators import is_random


def cleanup(program: Program) -> Program:
    """`program` without equal calls on equal operands, dead nodes and unused tensors."""
    graph, _ = program.copy_graph()
    seen: dict[object, fx.Node] = {}
    for node in list(graph.nodes):
        if node.op not in ("call_function", "get_attr"):
            continue
        if is_random(node):
            continue
        key = (node.op, str(node.target), repr((node.args, sorted(node.kwargs.items()))))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)
            graph.erase_node(node)
    prune(graph)
    return program.evolve(graph=graph)


@dataclass(frozen=True)
class Cleanup(Pass):
    """Say everything once: equal calls become one, unused nodes and tensors go."""

    stage: ClassVar[Literal["any"]] = "any"

    def run(self, program: Program, known: Known) -> Program:
        return cleanup(program)
