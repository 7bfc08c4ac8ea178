"""What an alignment did to every space, in words."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fxmerge.ir.supernet import NAMED
from fxmerge.methods.alignment.solve import Alignment

KINDS = ("identity", "permutation", "signed", "orthogonal", "free")


def kind_of(to: Sequence[Tensor]) -> str:
    """Of carriers of one space: the smallest group that holds them."""
    return max((_kind(each) for each in to), key=KINDS.index)


def _kind(to: Tensor) -> str:
    if torch.equal(to, torch.eye(*to.shape, dtype=to.dtype)):
        return "identity"
    entries = to != 0
    if int(entries.sum(0).max()) <= 1 and int(entries.sum(1).max()) <= 1:
        return "permutation" if bool((to >= 0).all()) else "signed"
    small = to @ to.T if to.shape[0] <= to.shape[1] else to.T @ to
    turned = torch.allclose(small, torch.eye(len(small), dtype=small.dtype), atol=1e-8)
    return "orthogonal" if turned else "free"


def did(alignment: Alignment) -> dict[str, str]:
    """By space: what was done to it."""
    found = {}
    for space, site in alignment.layout.sites.items():
        own = [carriers.to for (name, _), carriers in alignment.carriers.items() if name == space]
        if site.size > 1:
            found[space] = max((kind_of(to) for to in own), key=KINDS.index, default="identity")
    return found


def told(name: str, alignment: Alignment) -> list[str]:
    """A note for every kind of what was done, and for what was left alone and why."""
    layout, notes = alignment.layout, []
    done = did(alignment)
    for kind in KINDS:
        spaces = [f"{space} ({layout.sites[space].role})" for space, k in done.items() if k == kind]
        if spaces:
            what = "left as it is" if kind == "identity" else kind
            notes.append(f"{name}: {what}: {_some(spaces)}")
    rotary = [space for space in done if layout.sites[space].group == "rotary"]
    if rotary:
        notes.append(f"{name}: {_some(rotary)} are rotary: their planes have an order, and keep it")
    notes += [f"{name}: {space} is left as it is: {why}" for space, why in layout.apart.items()]
    return notes


def _some(spaces: Sequence[str]) -> str:
    return ", ".join(spaces[:NAMED]) + (f" and {len(spaces) - NAMED} more" if len(spaces) > NAMED else "")
