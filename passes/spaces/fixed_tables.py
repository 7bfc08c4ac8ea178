"""Fixed tables that are only added to what parameters compute: positions as sines and cosines, say.

Along its last axis such a table writes a space as a learnt one does, so a merge moves it with that space. A table that
multiplies something, or is looked at in any other way, is a constant: the spaces it meets stay where they are.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from fxmerge.coupling import has_tensor
from fxmerge.ir.program import Program, target_name
from passes.rules.names import aten

ROWS = frozenset(
    aten(
        "view.default _unsafe_view.default reshape.default permute.default transpose.int unsqueeze.default squeeze.dim "
        "squeeze.dims squeeze.default expand.default slice.Tensor select.int clone.default alias.default "
        "contiguous.default detach.default lift_fresh_copy.default index.Tensor index_select.default embedding.default "
        "_to_copy.default to.dtype to.dtype_layout to.device type_as.default"
    )
)
"""Operators behind which a table, their first operand, is still that table."""

ADDS = frozenset(aten("add.Tensor add_.Tensor"))


def tables(program: Program) -> frozenset[str]:
    """Names of the buffers that are only ever added, with no factor, to values made from inputs or parameters."""
    live = _alive(program)
    nodes = [node for node in program.graph.nodes if node.op == "get_attr" and node.target not in program.parameters]
    fits: dict[str, bool] = {}
    for node in nodes:
        name = str(node.target)
        value = program.tensors.get(name)
        fits[name] = fits.get(name, True) and _is_table(value) and _only_added(node, live)
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


def _only_added(node: fx.Node, live: set[fx.Node]) -> bool:
    if not node.users:
        return False
    for user in node.users:
        if user.op == "call_function" and not has_tensor(user):
            continue  # its size is read
        if user.op != "call_function":
            return False
        name = target_name(user.target)
        if name in ROWS:
            if user.args[0] is not node or node in _rest(user) or not _only_added(user, live):
                return False
        elif name in ADDS:
            others = [n for n in user.all_input_nodes if n is not node]
            if user.kwargs.get("alpha", 1) != 1 or len(others) != 1 or others[0] not in live:
                return False
        else:
            return False
    return True


def _rest(call: fx.Node) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.node.map_arg((call.args[1:], call.kwargs), found.append)
    return found
