"""Where each axis of a tensor goes behind moves, found by running them on the positions themselves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.coupling import has_tensor
from fxmerge.ir.program import Program
from passes.operators import Operators


def trace(
    program: Program, root: fx.Node, chain: list[fx.Node], operators: Operators
) -> tuple[list[tuple[int, ...]], tuple[Tensor | None, ...]]:
    """Where each axis of `root` went behind `chain`: the axes it became, and which of its positions arrived."""
    rank = root.meta["val"].ndim
    places: list[tuple[int, ...]] = [(a,) for a in range(rank)]
    covers: list[Tensor | None] = [None] * rank
    turned = _turned(rank, chain, operators)
    if turned is not None:
        return turned, tuple(covers)
    for axis in range(rank):
        shape = [1] * rank
        size = shape[axis] = root.meta["val"].shape[axis]
        if size == 1:  # it carries no positions of its own; where it was broadcast it meets every one
            places[axis] = _followed(axis, chain, operators)
            continue
        positions = torch.arange(size, dtype=torch.float64).reshape(shape).expand(root.meta["val"].shape)
        value = _run(program, root, positions, chain, operators)
        varies = tuple(j for j in range(value.ndim) if value.shape[j] > 1 and bool((value.diff(dim=j) != 0).any()))
        places[axis] = varies
        if len(varies) == 1:
            line = value.movedim(varies[0], 0).reshape(value.shape[varies[0]], -1)[:, 0].long()
            if line.numel() != size or not bool((line == torch.arange(size)).all()):
                covers[axis] = line
        elif varies:
            reached = torch.tensor(sorted({int(v) for v in value.reshape(-1).tolist()}))
            covers[axis] = None if reached.numel() == size else reached
    return places, tuple(covers)


def _followed(axis: int, chain: list[fx.Node], operators: Operators) -> tuple[int, ...]:
    """Where an axis of size one is behind calls that keep it as one; nowhere if one of them does not."""
    for node in chain:
        moved = operators.moved(node)
        found = [i for i, place in enumerate(moved.places) if place == axis] if moved is not None else []
        if len(found) != 1 or node.meta["val"].shape[found[0]] != 1:
            return ()
        axis = found[0]
    return (axis,)


def _turned(rank: int, chain: list[fx.Node], operators: Operators) -> list[tuple[int, ...]] | None:
    """Where each axis went behind calls that only turn axes (so sizes 1 are told apart too)."""
    order = list(range(rank))
    for node in chain:
        moved = operators.moved(node)
        if moved is None or moved.turned is None:
            return None
        order = [order[axis] for axis in moved.turned]
    return [(order.index(axis),) for axis in range(rank)]


def _run(program: Program, root: fx.Node, positions: Tensor, chain: list[fx.Node], operators: Operators) -> Tensor:
    """The value at the end of `chain` when the root tensor holds `positions`."""
    known: dict[fx.Node, Any] = {root: positions}

    def value(node: fx.Node) -> Any:
        if node not in known:
            fake = node.meta.get("val")
            if fake is None or not has_tensor(node):
                return fake
            if node.op == "get_attr":
                known[node] = program.tensors[str(node.target)]
            elif node.op == "placeholder":
                known[node] = torch.zeros(fake.shape, dtype=fake.dtype)
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), value)
                known[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        return known[node]

    for node in chain:
        moved = operators.moved(node)
        if moved is not None and moved.still:  # a cast to the parameter's own type, say: positions keep theirs
            known[node] = value(moved.source)
    result: Tensor = value(chain[-1])
    return result
