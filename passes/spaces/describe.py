"""What `fxmerge inspect --json` prints: spaces, the axes of every parameter, what is opaque, and how much is free."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fxmerge.coupling import RuleSet, operator_name
from fxmerge.ir.program import Program
from fxmerge.ir.space import Space, Spaces, leaves
from passes.rules import BUILTIN
from passes.spaces.find import SpacesOf

OUTSIDE = frozenset(("input", "output", "vocabulary"))
"""Roles of spaces that no method could move: they are the program's own inputs and outputs."""


def describe(program: Program, rules: RuleSet = BUILTIN) -> dict[str, Any]:
    """The spaces of a program as plain data."""
    found = program.get(SpacesOf(rules))
    shown = {leaf.space for name in found.transformed for axis in found.tensors[name] for leaf in leaves(axis)}
    names = [name for name in program.tensors if name in found.transformed]
    aliases = {alias: name for alias, name in program.aliases.items() if name in found.transformed}
    return {
        "spaces": {id_: _space(space) for id_, space in found.spaces.items() if id_ in shown},
        "parameters": {
            name: {
                "shape": list(program.tensors[aliases.get(name, name)].shape),
                "axes": [str(axis) for axis in found.tensors[aliases.get(name, name)]],
            }
            for name in (*names, *aliases)
        },
        "opaque": [
            {
                "parameter": o.parameter,
                "axis": o.axis,
                "operator": o.operator,
                "at": o.at,
                "message": o.message,
                "reason": o.reason,
            }
            for o in found.opaque
        ],
        "coverage": coverage(program, found),
        "free_axes": free_axes(program, found),
        "operators": dict(
            Counter(operator_name(n) for n in program.graph.nodes if n.op == "call_function").most_common()
        ),
    }


def _space(space: Space) -> dict[str, Any]:
    shown: dict[str, Any] = {"size": space.size, "role": space.role, "tolerates": space.tolerance}
    if space.within is not None:
        shown["within"] = space.within
    if space.scales or space.signs:
        shown |= {"scales": space.scales, "signs": space.signs}
    if space.reason:
        shown["reason"] = space.reason
    return shown


def coverage(program: Program, found: Spaces) -> float:
    """Share of the parameters of which no axis is opaque."""
    opaque = {o.parameter for o in found.opaque}
    sizes = {name: program.tensors[name].numel() for name in program.parameters}
    return round(1.0 - sum(sizes[name] for name in opaque & sizes.keys()) / max(sum(sizes.values()), 1), 4)


def free_axes(program: Program, found: Spaces) -> float:
    """Share of the parameter axes, each weighted by the size of its parameter, that tolerate a permutation.

    Inputs, outputs, vocabularies, and what no linear map reads or writes (windows, tables of places) do not count.
    """
    free = total = 0
    for name in sorted(program.parameters):
        for axis in found.tensors.get(name, ()):
            spaces = [found.spaces[leaf.space] for leaf in leaves(axis) if leaf.size > 1]
            movable = any(space.movable for space in spaces)
            if movable or any(map(_counts, spaces)):
                total += program.tensors[name].numel()
                free += program.tensors[name].numel() * movable
    return round(free / total, 4) if total else 1.0


def _counts(space: Space) -> bool:
    """Whether a space that cannot move should have been able to."""
    return space.role not in OUTSIDE and bool(space.role != "other" or space.readers or space.writers)
