"""A merge is carried to weights only where they can take it in; elsewhere it stays on activations, and exact."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from torch import fx

import passes
from fxmerge.ir.difference import compare, largest
from fxmerge.ir.merge import head, merge, unmerge
from fxmerge.ir.program import Program
from fxmerge.pipeline.borders import FOLDED
from tests.passes.supernet.test_supernet import net_of

RELU = torch.ops.aten.relu.default
NEG = torch.ops.aten.neg.default


def behind(graph: fx.Graph, node: fx.Node) -> None:
    """Put a call between a node and all that read it."""
    with graph.inserting_after(node):
        call = graph.call_function(RELU, (node,))
    node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)


def in_front(graph: fx.Graph, node: fx.Node) -> None:
    """Put a call between a merge and the first of the calls that it merges."""
    first, *others = node.args[0]  # type: ignore[misc]
    with graph.inserting_before(node):
        node.update_arg(0, [graph.call_function(NEG, (first,)), *others])


def chosen(program: Program, target: Callable[..., object], number: int) -> fx.Node:
    return [n for n in program.graph.nodes if n.target is target][number]


@pytest.mark.parametrize(
    ("target", "number", "insert", "left"),
    [
        (unmerge, 1, behind, "one parent's reader"),
        (unmerge, -1, behind, "a head"),
        (merge, 1, in_front, "one parent's writer"),
    ],
    ids=["before a reader", "before a head", "behind a writer"],
)
@pytest.mark.parametrize("same", [False, True], ids=["widths differ", "widths are equal"])
def test_a_call_between_a_map_and_its_weights_keeps_the_merge_on_activations(
    parents: Callable[[str, int], list[Program]],
    double: Callable[[Program], Program],
    target: Callable[..., object],
    number: int,
    insert: Callable[[fx.Graph, fx.Node], None],
    left: str,
    *,
    same: bool,
) -> None:
    programs = parents("mlp", 2)
    net = net_of([programs[0], programs[0]] if same else programs)
    program = net.program
    graph, where = program.copy_graph()
    insert(graph, where[chosen(program, target, number)])
    between = double(program.evolve(graph=graph))
    hoisted = passes.hoist(between)
    samples = {"x": torch.randn(5, 20, dtype=torch.float64)}
    assert largest(compare(between, hoisted, samples, [p.name for p in between.outputs])) < 1e-12, left
    stayed = [n for n in hoisted.graph.nodes if n.target in (merge, head)]
    assert len(stayed) == 1
    said = FOLDED.wrong(passes.fold_merge(hoisted, net.tasks, 0))
    if left == "a head":  # its map becomes a linear map of the task's own
        assert said is None
    else:
        assert re.fullmatch(r"no weight takes in the merge at aten\.(linear|neg)\.default \(.+\.py:\d+\)", str(said))
