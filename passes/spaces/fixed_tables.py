"""Fixed tables that are only added to what parameters compute: positions as sines and cosines, say.

Along its last axis such a table writes a space as a learnt one does, so a merge moves it with that space. A table that
multiplies something, or is looked at in any other way, is a constant: the spaces it meets stay where they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxmerge.coupling import has_tensor
from fxmerge.ir.program import Program
from passes.operators import OPERATORS, Operators


def tables(program: Program, operators: Operators = OPERATORS) -> frozenset[str]:
    """Names of the buffers that are only ever added, with no factor, to values made from inputs or parameters."""
    live = _alive(program)
    nodes = [node for node in program.graph.nodes if node.op == "get_attr" and node.target not in program.parameters]
    fits: dict[str, bool] = {}
    for node in nodes:
        name = str(node.target)
        value = program.tensors.get(name)
        fits[name] = fits.get(name, True) and _is_table(value) and _only_added(node, live, operators)
    return frozenset(name for name, fit in fits.items() if fit)


def _is_table(value: Tensor | None) -> bool:
    """Whether a tensor has rows of finite numbers (a mask that hides with infinity has none)."""
    if value is None or value.ndim < 2 or not value.is_floating_point():
        return False
    return value.is_meta or bool(torch.isfinite(value).all())


def _alive(program: Program) -> set[fx.Node]:
    """Values made from inputs or parameters."""
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        own = node.op == "get_attr" and node.target in program.parameters
        if own or (node.op == "placeholder") or any(n in found for n in node.all_input_nodes):
            found.add(node)
    return found


def _only_added(node: fx.Node, live: set[fx.Node], operators: Operators) -> bool:
    if not node.users:
        return False
    for user in node.users:
        if user.op == "call_function" and not has_tensor(user):
            continue  # its size is read
        if user.op != "call_function":
            return False
        moved = operators.moved(user)
        if moved is not None:
            if moved.source is not node or node in moved.by or not _only_added(user, live, operators):
                return False
        elif operators.sums(user):
            others = [n for n in user.all_input_nodes if n is not node]
            if user.kwargs.get("alpha", 1) != 1 or len(others) != 1 or others[0] not in live:
                return False
        else:
            return False
    return True
