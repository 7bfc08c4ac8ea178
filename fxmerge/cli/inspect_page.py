"""One self-contained page that draws the spaces of a model, who writes and who reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fxmerge.cli.picture import calls, draw, kind_of
from fxmerge.cli.report import templates
from fxmerge.coupling import operator_name
from fxmerge.ir.program import Program
from fxmerge.ir.space import Spaces, Use, leaves

HUES = {
    "residual": "#2f6fb3",
    "heads": "#c2571a",
    "kv_groups": "#a8442a",
    "query_key": "#8a5cc2",
    "value_output": "#2a8f83",
    "mlp": "#4d8b31",
    "experts": "#8f7a12",
    "embedding": "#5a6b7b",
    "channels": "#37839c",
    "vocabulary": "#5a6b7b",
    "input": "#777777",
    "output": "#777777",
    "other": "#8c8c8c",
}
"""Colour of each role, dark enough for white text."""


def page(program: Program, spaces: Spaces, described: Mapping[str, Any]) -> str:
    """The page as text. `described` is what `inspect --json` prints; everything else is looked up in `spaces`."""
    shown = list(described["spaces"])
    picture = draw(program, spaces, shown)
    roles = list(dict.fromkeys(space["role"] for space in described["spaces"].values()))
    return templates().get_template("inspect.html.j2").render(
        program=program, picture=picture, described=described, hues=HUES, roles=sorted(roles, key=list(HUES).index),
        details={**_of_spaces(program, spaces, described), **_of_calls(program, spaces, shown)},
    )  # fmt: skip


def _of_spaces(program: Program, spaces: Spaces, described: Mapping[str, Any]) -> dict[str, Any]:
    """What a click on a space shows."""
    found = {}
    for name, values in described["spaces"].items():
        space = spaces.spaces[name]
        seen = {use.tensor for group in (space.writers, space.readers, space.others) for use in group}
        also = [tensor for tensor, axes in spaces.tensors.items() if tensor in spaces.transformed and tensor not in seen
                and any(leaf.space == name for axis in axes for leaf in leaves(axis))]  # fmt: skip
        uses = [("written by", space.writers), ("read by", space.readers), ("scaled or shifted by", space.others)]
        found[name] = {
            "kind": "space",
            **values,
            "also": [_parameter(tensor, program, spaces) for tensor in also],
            "uses": [_use(how, use, program, spaces) for how, group in uses for use in group],
        }
    return found


def _of_calls(program: Program, spaces: Spaces, shown: list[str]) -> dict[str, Any]:
    """What a click on a call shows."""
    return {
        call.id: {
            "kind": kind_of(call),
            "operator": operator_name(call.node),
            "at": call.node.meta.get("source", ""),
            "parameters": [_parameter(name, program, spaces) for name in call.tensors],
            "reads": sorted(call.reads),
            "writes": sorted(call.writes),
            "scales": sorted(call.along),
        }
        for call in calls(program, spaces, shown)
    }


def _use(how: str, use: Use, program: Program, spaces: Spaces) -> dict[str, Any]:
    return {
        "how": how,
        **_parameter(use.tensor, program, spaces),
        "axis": use.axis,
        "operator": operator_name(use.node),
        "at": use.node.meta.get("source", ""),
    }


def _parameter(name: str, program: Program, spaces: Spaces) -> dict[str, Any]:
    return {
        "parameter": name,
        "shape": list(program.tensors[name].shape),
        "axes": [str(axis) for axis in spaces.tensors.get(name, ())],
    }
