"""Each reader gets its own copy of a vector that holds one number throughout.

    Add(x, zeros), Add(y, zeros)  -->  Add(x, zeros), Add(y, zeros.1)

Exporters store equal tensors once: of norms whose scales are all one, as they begin, one is left. That is no tied
weight: the copies compute the same, and one number throughout is nothing that training could have tied.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from fxmerge.from_onnx.graph import Graph, Node, Stored

MOST_COPIED = 1 << 24
"""Numbers that copies hold together; what would need more stays shared."""


def own_constants(graph: Graph) -> tuple[Graph, list[str]]:
    """A graph in which no two nodes share a vector of one number, and the names of those that were shared."""
    readers: dict[str, list[int]] = {}
    for number, node in enumerate(graph.nodes):
        for name in dict.fromkeys(node.inputs):
            readers.setdefault(name, []).append(number)
    inner = {name for node in graph.nodes for each in node.graphs for name in each.reads}
    taken = {*readers, *inner, *graph.outputs, *(name for node in graph.nodes for name in node.outputs)}
    nodes, copies, shared, room = list(graph.nodes), list[Stored](), list[str](), MOST_COPIED
    for held in graph.stored:
        others = readers.get(held.name, [])[0 if held.name in inner or held.name in graph.outputs else 1 :]
        if not others or not _is_one_number(held.value):
            continue
        room -= held.tensor.numel() * len(others)
        if room < 0:
            break
        shared.append(held.name)
        for number, place in enumerate(others, 1):
            name = _free(f"{held.name}.{number}", taken)
            copies.append(replace(held, name=name, value=held.tensor.clone()))
            nodes[place] = _reading(nodes[place], held.name, name)
    return replace(graph, nodes=tuple(nodes), stored=(*graph.stored, *copies)), shared


def _is_one_number(value: object) -> bool:
    if not isinstance(value, Tensor) or value.ndim != 1 or not value.numel() or not value.is_floating_point():
        return False
    return bool((value == value[0]).all())


def _free(name: str, taken: set[str]) -> str:
    while name in taken:
        name += "_"
    taken.add(name)
    return name


def _reading(node: Node, name: str, other: str) -> Node:
    return replace(node, inputs=tuple(other if each == name else each for each in node.inputs))
