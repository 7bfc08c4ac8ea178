"""What stands at the merge and unmerge nodes of a SuperNet: maps, block by block, and what each block is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.ir.maps import AxisMap, Map
from fxmerge.ir.merge import Folds, merge, unmerge
from fxmerge.ir.space import Leaf, leaves, pieces
from fxmerge.ir.supernet import Place


@dataclass(frozen=True)
class Unmerge:
    """A node at which parent `k` is shown what it would see of `source`."""

    source: fx.Node
    name: str
    axis: int
    k: int

    @classmethod
    def of(cls, node: fx.Node) -> Unmerge | None:
        if node.target is not unmerge:
            return None
        source, axis_map, axis, k = node.args
        assert isinstance(source, fx.Node) and isinstance(axis_map, fx.Node)
        return cls(source, str(axis_map.target), _int(axis), _int(k))

    @staticmethod
    def half(node: fx.Node) -> bool:
        """Whether a node unmerges what is unmerged along another axis next, which still stands as in the merged model.

        Rows along the first axis are then of different things here and in the parent, so no regression tells the map.
        """
        return node.target is unmerge and any(user.target is unmerge for user in node.users)


@dataclass(frozen=True)
class Merge:
    """A node that joins what the parents' `calls` write."""

    calls: tuple[fx.Node, ...]
    name: str
    axis: int
    parents: tuple[int, ...]
    folds: Folds | None

    @classmethod
    def of(cls, node: fx.Node) -> Merge | None:
        if node.target is not merge:
            return None
        args: tuple[Any, ...] = node.args
        calls, axis_map, axis, parents = args[:4]
        folds = Folds(*args[4]) if len(args) > 4 and args[4] is not None else None
        return cls(tuple(calls), str(axis_map.target), int(axis), tuple(parents), folds)

    @property
    def behind(self) -> tuple[fx.Node, ...]:
        """The calls, what they read, and what that is unmerged from."""
        read = [n for call in self.calls for n in call.all_input_nodes]
        return (*self.calls, *read, *(u.source for n in read if (u := Unmerge.of(n))))


def _int(value: object) -> int:
    assert isinstance(value, int)
    return value


@dataclass(frozen=True)
class Block:
    """One block of an axis map: where it lies in the axis, merged and in every parent, and its factors there."""

    map: Map
    merged: Tensor
    own: tuple[Tensor, ...]
    factors: tuple[Leaf, ...]
    theirs: tuple[tuple[Leaf, ...], ...]

    @property
    def space(self) -> str:
        """The major space: its units (heads, say, or hidden units) are kept or dropped as wholes."""
        return self.factors[0].space

    @property
    def plain(self) -> bool:
        """Whether there is nothing but that space."""
        return len(self.factors) == 1

    def units(self) -> list[Tensor]:
        """The parents' units, one parent after the other: their columns among all columns of the parents' blocks."""
        columns = torch.split(torch.arange(sum(map(len, self.own))), [len(own) for own in self.own])
        return [unit for part, f in zip(columns, self.theirs, strict=True) for unit in part.reshape(f[0].size, -1)]

    def set(self, matrices: Sequence[Tensor]) -> None:
        """Hold these matrices, one per parent."""
        for k, matrix in enumerate(matrices):
            self.set_one(k, matrix)

    @torch.no_grad()
    def set_one(self, k: int, matrix: Tensor) -> None:
        self.map.dense[k].copy_(matrix)

    def identity(self) -> list[Tensor]:
        """Per parent: the merge matrix that leaves every unit in its place, as far as both have it."""
        found = []
        for own, theirs in zip(self.own, self.theirs, strict=True):
            matrix = torch.zeros(len(self.merged), len(own), dtype=torch.float64)
            matrix[_identity(self.factors, theirs)] = 1.0
            found.append(matrix)
        return found

    def selection(self, kept: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Per parent: the merge matrix whose i-th merged unit is unit `kept[i][1]` of parent `kept[i][0]`."""
        ours = self.factors[0].size
        inner = len(self.merged) // ours
        found = []
        for k, own in enumerate(self.own):
            units = self.theirs[k][0].size
            matrix = torch.zeros(ours, inner, units, len(own) // units, dtype=torch.float64)
            a, b = _identity(self.factors[1:], self.theirs[k][1:])
            for i, (parent, unit) in enumerate(kept):
                if parent == k:
                    matrix[i, a, unit, b] = 1.0
            found.append(matrix.reshape(len(self.merged), len(own)))
        return found


def blocks_of(module: AxisMap, place: Place) -> Iterator[Block]:
    """The blocks of an axis map that have a map, with the factors that the analysis found in them."""
    ours, theirs = pieces(place.merged), [pieces(axis) for axis in place.parents]
    fit = len(ours) == len(module.blocks) and all(len(found) == len(ours) for found in theirs)
    for i, block in enumerate(module.blocks):
        if isinstance(block, Map):
            yield Block(
                block,
                getattr(module, f"merged{i}"),
                tuple(getattr(module, f"own{i}_{k}") for k in range(len(module.sizes))),
                ours[i].factors if fit else tuple(leaves(place.merged)),
                tuple(
                    found[i].factors if fit else tuple(leaves(axis))
                    for found, axis in zip(theirs, place.parents, strict=True)
                ),
            )


def _identity(ours: Sequence[Leaf], theirs: Sequence[Leaf]) -> tuple[Tensor, Tensor]:
    """Positions of the rectangular identity between two products of factors, factor by factor where they match."""
    sizes, others = [f.size for f in ours], [f.size for f in theirs]
    a, b = torch.arange(prod(sizes)), torch.arange(prod(others))
    if len(sizes) != len(others):
        count = min(len(a), len(b))
        return a[:count], b[:count]
    window = tuple(slice(0, min(x, y)) for x, y in zip(sizes, others, strict=True))
    return a.reshape(sizes)[window].reshape(-1), b.reshape(others)[window].reshape(-1)
