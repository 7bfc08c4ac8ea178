"""Pictures of how the parents' features go into the merged model's."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxmerge.ir.supernet import SuperNet

CELLS, PICTURES = 24, 12
"""Most cells of a picture of a map to a side, and most pictures."""


@dataclass(frozen=True)
class Mixed:
    """|M| of a space, a matrix a parent: merged features down, the parent's across; means where it is large."""

    space: str
    role: str
    size: int
    parents: tuple[Tensor, ...]


@torch.no_grad()
def mixing(supernet: SuperNet) -> tuple[Mixed, ...]:
    """How the parents' features go into the merged model's, as the maps are now: a picture for each space."""
    found: dict[str, Mixed] = {}
    for name, block in supernet.maps():
        space, role = _space(supernet, name)
        if block.kind == "merge" and space not in found and len(found) < PICTURES and block.size > 1:
            parents = tuple(_small(block.matrix(k)) for k in range(len(block.sizes)))
            found[space] = Mixed(space, role, block.size, parents)
    return tuple(found.values())


def _space(supernet: SuperNet, name: str) -> tuple[str, str]:
    """Name and role of the space that a map writes; a part of an axis of several spaces is counted."""
    own, _, part = name.removeprefix("maps.").partition(".")
    place = supernet.places.get(f"maps.{own}")
    if place is None or supernet.spaces is None:
        return name.removeprefix("maps."), ""
    space = getattr(place.merged, "space", None)
    if space is None:
        return f"{place.merged} {part}".strip(), "several"
    return space, supernet.spaces.spaces[space].role


def _small(matrix: Tensor) -> Tensor:
    size = (min(CELLS, matrix.shape[0]), min(CELLS, matrix.shape[1]))
    return nn.functional.adaptive_avg_pool2d(matrix.detach().abs().float().cpu()[None], size)[0]
