"""What the maps of a SuperNet do to every space: the smallest group that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import torch
from torch import Tensor

from fxmerge.ir.maps import AxisMap
from fxmerge.ir.space import Leaf
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.map_nodes import Block, blocks_of

GROUPS = ("identity", "rotary", "permutation", "signed", "orthogonal", "free")
"""From the smallest to the largest; rotary turns planes that keep their order, in the parents' weights; free holds
scales, groupings, soft and singular maps too."""
CLOSE = 1e-5
"""Of entries of a map, which may be held in float32."""


def groups_of(supernet: SuperNet) -> dict[str, str]:
    """By space of more than one unit: the smallest of `GROUPS` that holds what the maps make of it, over all parents.

    A space is judged where it is read; where it is written only if it is read nowhere, up to the parents' shares.
    """
    found: dict[str, dict[str, str]] = {"unmerge": {}, "merge": {}}
    for name, place in supernet.places.items():
        module = supernet.program.maps.get(name)
        for block in blocks_of(module, place) if isinstance(module, AxisMap) else ():
            kind = "unmerge" if block.map.kind == "unmerge" else "merge"
            for space, group in _of_block(block).items():
                found[kind][space] = max(found[kind].get(space, GROUPS[0]), group, key=GROUPS.index)
    return found["merge"] | found["unmerge"]


def groups_at_start(supernet: SuperNet) -> dict[str, str]:
    """The same before training, scales of norms that an alignment holds in the maps aside."""
    return dict(supernet.groups) or groups_of(supernet)


def counted(groups: Mapping[str, str]) -> str:
    """How many spaces have each group, in words."""
    found = list(groups.values())
    return ", ".join(f"{found.count(kind)} {kind}" for kind in GROUPS if kind in found) or "none"


def _of_block(block: Block) -> dict[str, str]:
    found: dict[str, str] = {}
    for k, own in enumerate(block.theirs):
        matrix = block.map.matrix(k).detach().double().cpu()
        to = matrix.T if block.map.kind == "unmerge" else _unshared(matrix)
        for leaf, group in zip(block.factors, groups_of_factors(to, block.factors, own), strict=False):
            if leaf.size > 1:
                found[leaf.space] = max(found.get(leaf.space, GROUPS[0]), group, key=GROUPS.index)
    return found


def _unshared(matrix: Tensor) -> Tensor:
    """A merge matrix with every merged unit whole again that the parents share."""
    square = matrix.shape[0] == matrix.shape[1]  # so a row of a turn is a unit vector, and no grouping looks like one
    whole = matrix.norm(dim=1, keepdim=True) if square else matrix.abs().amax(1, keepdim=True)
    return matrix / whole.clamp_min(1e-30)


def groups_of_factors(to: Tensor, ours: Sequence[Leaf], theirs: Sequence[Leaf]) -> list[str]:
    """Per factor of a product of spaces: the group that holds a map (∏ d × ∏ d_k) along it.

    Outer factors carry inner ones as wholes: only the innermost has signs, turns and scales.
    """
    sizes, others = [f.size for f in ours], [f.size for f in theirs]
    if len(sizes) != len(others) or to.shape != (prod(sizes), prod(others)):
        return ["identity" if _same(to, torch.eye(*to.shape, dtype=to.dtype)) else "free"] * len(sizes)
    if len(sizes) == 1:
        return [group_of(to)]
    inner, own = prod(sizes[1:]), prod(others[1:])
    parts = to.reshape(sizes[0], inner, others[0], own).transpose(1, 2)  # of outer unit i from the parent's j
    moved = parts.abs().amax((2, 3)) > CLOSE
    outer = group_of(moved.double())
    carried = [groups_of_factors(parts[i, j], ours[1:], theirs[1:]) for i, j in moved.nonzero().tolist()]
    if not carried:
        return [outer, *["free"] * (len(sizes) - 1)]
    return [outer, *(max(each, key=GROUPS.index) for each in zip(*carried, strict=True))]


def group_of(to: Tensor) -> str:
    """The smallest group that holds a matrix (d × d_k); the rectangular ones for unequal sizes."""
    if _same(to, torch.eye(*to.shape, dtype=to.dtype)):
        return "identity"
    entries = to.abs() > CLOSE
    if int(entries.sum(0).max()) <= 1 and int(entries.sum(1).max()) <= 1:
        if _same(to.abs(), entries.double()) and int(entries.sum()) == min(to.shape):
            return "permutation" if bool((to > -CLOSE).all()) else "signed"
        return "free"
    small = to @ to.T if to.shape[0] <= to.shape[1] else to.T @ to
    return "orthogonal" if _same(small, torch.eye(len(small), dtype=small.dtype)) else "free"


def _same(a: Tensor, b: Tensor) -> bool:
    return torch.allclose(a, b, atol=CLOSE, rtol=0)
