"""A program that shows values of its inside, each with its sizes named."""

from __future__ import annotations

from collections.abc import Mapping

from torch import fx

from fxmerge.ir.program import Port, Program, prune
from fxmerge.ir.row_axes import row_axes
from fxmerge.ir.row_blocks import is_batch


def showing(program: Program, nodes: Mapping[str, fx.Node]) -> Program:
    """The program with the given nodes as its outputs, by name."""
    graph, where = program.copy_graph()
    last = next(iter(reversed(graph.nodes)))
    last.args = (tuple(where[n] for n in nodes.values()),)
    prune(graph)
    ports = tuple(Port(name, shape_of(program, n), n.meta["val"].dtype) for name, n in nodes.items())
    return program.evolve(graph=graph, outputs=ports)


def shape_of(program: Program, node: fx.Node) -> tuple[int | str, ...]:
    """Shape of a node's value with its dynamic sizes named."""
    names = {size: name for name, size in program.hints.items()}
    shape = node.meta["val"].shape
    if program.rows is None:
        return tuple(names.get(int(n), int(n)) for n in shape)
    # many sizes may be equal to a fixed batch, and one axis at most is one
    others = {size: name for size, name in names.items() if not is_batch(name)}
    found = [others.get(int(n), int(n)) for n in shape]
    axis = program.get(row_axes).get(node)
    if axis is not None:
        found[axis] = names[program.rows]
    return tuple(found)
