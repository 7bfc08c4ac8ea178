"""What an alignment did to every space, in words."""

from __future__ import annotations

from collections.abc import Mapping

from fxmerge.ir.supernet import NAMED, SuperNet
from fxmerge.messages import listed
from fxmerge.methods.alignment.layout import Layout
from fxmerge.methods.alignment.solve import Alignment
from fxmerge.methods.groups import GROUPS, group_of, groups_of


def groups_by(alignment: Alignment, net: SuperNet) -> dict[str, str]:
    """By space: the group of what an alignment does; the scales of folded norms in its maps aside.

    Free is what is carried otherwise at some places than at others: orders, say, of which each alone is a symmetry.
    """
    turned = {norm.space: alignment.of(norm.space, ()).to for norm in alignment.layout.norms}
    parted = {space: "free" for space in alignment.layout.sites if alignment.parted(space)}
    turns = {s: max((group_of(t.cpu()) for t in to), key=GROUPS.index) for s, to in turned.items()}
    return groups_of(net) | parted | dict.fromkeys(alignment.planes, "rotary") | turns


def told(name: str, layout: Layout, groups: Mapping[str, str]) -> list[str]:
    """A note for every kind of what was done, and for what was left alone and why."""
    notes = []
    for kind in GROUPS:
        spaces = [f"{space} ({layout.sites[space].role})" for space in layout.sites if groups.get(space) == kind]
        if spaces:
            what = "left as it is" if kind == "identity" else kind
            notes.append(f"{name}: {what}: {listed(spaces, NAMED)}")
    notes += [f"{name}: {space} takes an order alone: {why}" for space, why in layout.kept.items()]
    notes += [f"{name}: {space} is left as it is: {why}" for space, why in layout.apart.items()]
    return notes
