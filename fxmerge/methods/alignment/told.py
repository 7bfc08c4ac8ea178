"""What an alignment did to every space, in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from fxmerge.ir.supernet import NAMED
from fxmerge.methods.alignment.layout import Layout
from fxmerge.methods.groups import GROUPS


def told(name: str, layout: Layout, groups: Mapping[str, str]) -> list[str]:
    """A note for every kind of what was done, and for what was left alone and why."""
    notes = []
    for kind in GROUPS:
        spaces = [f"{space} ({layout.sites[space].role})" for space in layout.sites if groups.get(space) == kind]
        if spaces:
            what = "left as it is" if kind == "identity" else kind
            notes.append(f"{name}: {what}: {_some(spaces)}")
    rotary = [space for space in layout.sites if space in groups and layout.sites[space].group == "rotary"]
    if rotary:
        notes.append(f"{name}: {_some(rotary)} are rotary: their planes have an order, and keep it")
    notes += [f"{name}: {space} is left as it is: {why}" for space, why in layout.apart.items()]
    return notes


def _some(spaces: Sequence[str]) -> str:
    return ", ".join(spaces[:NAMED]) + (f" and {len(spaces) - NAMED} more" if len(spaces) > NAMED else "")
