"""Moves of a parameter become a tensor of its own, where its parts are not shared.

linear(x, permute(W), b)                    -->   linear(x, Wᵀ, b)
linear(x, W[0:d]), linear(x, W[d:2d])       -->   linear(x, W₀), linear(x, W₁)
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, fx

from fxmerge.ir.program import Program
from passes.operators import OPERATORS, Operators


def own_tensors(program: Program, operators: Operators = OPERATORS) -> Program:
    """`program` with every moved parameter, or part of one, as a parameter; a tied one stays as it is."""
    graph, _ = program.copy_graph()
    tensors, parameters = dict(program.tensors), set(program.parameters)
    for node in list(graph.nodes):
        name = str(node.target)
        if node.op != "get_attr" or name not in program.tensors:
            continue
        chains = list(_chains(node, operators))
        if chains == [[]] or not _disjoint(program.tensors[name].shape, chains):
            continue
        for number, chain in enumerate(chains):
            own = _free(f"{name}_{number}" if len(chains) > 1 else f"{name}_moved", tensors)
            tensors[own] = _moved(program.tensors[name].detach(), chain).contiguous()
            if name in program.parameters:
                parameters.add(own)
            with graph.inserting_after(node):
                new = graph.get_attr(own)
            new.meta = {"by": "own-tensors"}
            chain[-1].replace_all_uses_with(new)
    graph.eliminate_dead_code()
    return program.evolve(graph=graph, tensors=tensors, parameters=frozenset(parameters))


def _chains(node: fx.Node, operators: Operators) -> Iterator[list[fx.Node]]:
    """The moves between a tensor and each value that something else than a move reads."""
    todo: list[list[fx.Node]] = [[]]
    while todo:
        chain = todo.pop()
        last = chain[-1] if chain else node
        moves = [user for user in last.users if _is_move(user, operators)]
        if len(moves) < len(last.users):
            yield chain
        todo.extend([*chain, move] for move in reversed(moves))


def _is_move(node: fx.Node, operators: Operators) -> bool:
    """Whether a call moves the numbers of its one operand, whatever the input, and copies none of them."""
    moved = operators.moved(node) if len(node.all_input_nodes) == 1 else None
    if moved is None or moved.cast or not isinstance(node.meta["val"], Tensor):
        return False
    return node.args[:1] == (moved.source,) and bool(node.meta["val"].numel() <= moved.source.meta["val"].numel())


def _moved(value: Tensor, chain: list[fx.Node]) -> Tensor:
    for move in chain:
        value = move.target(value, *move.args[1:], **move.kwargs)  # type: ignore[operator]
    return value


def _disjoint(shape: torch.Size, chains: list[list[fx.Node]]) -> bool:
    """Whether no entry of a tensor of this shape is in two of its moved parts."""
    if len(chains) == 1:
        return True
    entries = torch.arange(shape.numel()).reshape(shape)
    taken = torch.zeros(shape.numel(), dtype=torch.bool)
    for chain in chains:
        part = _moved(entries, chain).reshape(-1)
        if bool(taken[part].any()):
            return False
        taken[part] = True
    return True


def _free(name: str, tensors: dict[str, Tensor]) -> str:
    while name in tensors:
        name += "_"
    return name
