"""What speaks for which match of the parents' units: their features on samples, summed over batches in float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, fx

from fxmerge.ir.maps import AxisMap
from fxmerge.ir.supernet import Place, SuperNet
from fxmerge.methods.alignment.layout import TURNED, Layout
from fxmerge.methods.map_nodes import Block, blocks_of
from fxmerge.methods.regress import Rows
from fxmerge.methods.seen import parents_of
from fxmerge.methods.some import some
from fxmerge.methods.walk import Values
from fxmerge.training.pool import Pool


@dataclass(frozen=True)
class Evidence:
    """What units have in common where some spaces stand side by side, as (4 heads × 8 coordinates).

    `common[l][k]` is a tensor of shape (sizes of parent l …, sizes of parent k …) along `factors`.
    """

    factors: tuple[str, ...]
    common: Sequence[Sequence[Tensor]]


@dataclass
class Sums:
    """Sums over rows of the parents' features side by side."""

    count: float
    x: Tensor
    xx: Tensor

    @classmethod
    def empty(cls, size: int) -> Sums:
        wide = torch.float64
        return cls(0.0, torch.zeros(size, dtype=wide), torch.zeros(size, size, dtype=wide))

    def add(self, rows: Tensor) -> None:
        """More rows (n, features)."""
        self.count += len(rows)
        self.x += rows.sum(0)
        self.xx += rows.T @ rows

    def plus(self, other: Sums) -> Sums:
        return Sums(self.count + other.count, self.x + other.x, self.xx + other.xx)

    @property
    def covariance(self) -> Tensor:
        mean = self.x / max(self.count, 1)
        return self.xx / max(self.count, 1) - torch.outer(mean, mean)

    @property
    def correlation(self) -> Tensor:
        """Units that never vary correlate with nothing."""
        covariance = self.covariance
        scale = covariance.diagonal().clamp(min=0).sqrt()
        inverse = torch.where(scale > 1e-7 * scale.max().clamp(min=1e-300), 1 / scale.clamp(min=1e-300), 0.0)
        return inverse[:, None] * covariance * inverse

    def alike(self, widths: Sequence[int]) -> Tensor:
        """The covariance, each part of so many features at a mean variance of one: it turns with them."""
        covariance = self.covariance
        means = [part.mean().clamp_min(1e-300) for part in torch.split(covariance.diagonal(), list(widths))]
        inverse = torch.cat([mean.rsqrt().expand(n) for mean, n in zip(means, widths, strict=True)])
        return inverse[:, None] * covariance * inverse


@dataclass
class Features:
    """The parents' features at every place where a space is read; at those where it is written if it is read nowhere.

    Two halves of the samples are summed apart: what is decided on one can be judged by the other.
    """

    layout: Layout
    spots: list[Spot | Stream] = field(default_factory=list)

    @classmethod
    def of(cls, layout: Layout, pool: Pool, most: int, *, turns: bool = False) -> Features:
        """Run the parents over at most so many inputs of a pool, one batch at a time.

        With `turns`, units that may turn are compared as they vary: where each has unit variance no turn is the best.
        """
        found = cls(layout, [*_spots(layout, turns), *_streams(layout)])
        look(layout, pool, most, found.spots)
        return found

    def beside(self, root: str, layout: Layout) -> bool:
        """Whether a space, or one inside it, stands beside another root's on an axis: as heads that share a scale."""
        tree = set(layout.tree(root))
        factors = [set(e.factors) & layout.sites.keys() for spot in self.spots for e in spot.evidence(None)]
        return any(found & tree and found - tree for found in factors)

    def evidence(self, spaces: Iterable[str], half: int | None = None) -> list[Evidence]:
        """What concerns any of these spaces: correlations, of one half of the samples or of all."""
        wanted, aside = set(spaces), self.layout.aside
        found = [(set(e.factors), e) for spot in self.spots for e in spot.evidence(half)]
        return [e for factors, e in found if wanted & factors and not aside & factors]


class Looking(Protocol):
    """Something that looks at one value of every parent."""

    @property
    def nodes(self) -> tuple[fx.Node, ...]: ...

    def add(self, values: Sequence[Tensor], rows: Rows, batch: int) -> None: ...


def look(layout: Layout, pool: Pool, most: int, spots: Sequence[Looking]) -> None:
    """Run the parents over at most so many inputs of a pool, one batch at a time, and show every spot its values."""
    supernet = layout.supernet
    names = [port.name for port in supernet.program.inputs]
    batches = [dict(zip(names, part, strict=True)) for part in some(pool, most, supernet.program.rows)]
    rows = Rows([[batch[names[i]] for i in pool.masks] for batch in batches])
    parents = list(parents_of(supernet))
    kept = [list(dict.fromkeys(spot.nodes[k] for spot in spots)) for k in range(layout.count)]
    for number, batch in enumerate(batches):
        values = [Values(parent, [batch], nodes) for parent, nodes in zip(parents, kept, strict=True)]
        for spot in spots:
            spot.add([values[k].of(node)[0] for k, node in enumerate(spot.nodes)], rows, number)


@dataclass
class Spot:
    """A place of the parents, and the blocks of its axis."""

    nodes: tuple[fx.Node, ...]
    axis: int
    blocks: list[Block]
    turns: list[bool]
    """Whether the innermost units of each block are compared as they vary."""
    sums: list[tuple[Sums, Sums]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sums = [(Sums.empty(n), Sums.empty(n)) for n in (sum(map(len, b.own)) for b in self.blocks)]

    def add(self, values: Sequence[Tensor], rows: Rows, batch: int) -> None:
        parts = [rows.of(value, self.axis, batch) for value in values]
        if len({len(part) for part in parts}) > 1:
            return
        for block, halves in zip(self.blocks, self.sums, strict=True):
            side = torch.cat([part[:, own.to(part.device)] for part, own in zip(parts, block.own, strict=True)], 1)
            middle = len(side) // 2
            halves[0].add(side[:middle])
            halves[1].add(side[middle:])

    def evidence(self, half: int | None) -> Iterable[Evidence]:
        for block, turns, (first, second) in zip(self.blocks, self.turns, self.sums, strict=True):
            sums = first.plus(second) if half is None else (first, second)[half]
            if sums.count:
                widths = [len(own) for own in block.own]
                common = sums.alike(widths) if turns else sums.correlation
                shapes = [tuple(f.size for f in factors) for factors in block.theirs]
                split = [torch.split(row, widths, 1) for row in torch.split(common, widths, 0)]
                yield Evidence(
                    tuple(f.space for f in block.factors),
                    [
                        [part.reshape(*a, *b) for part, b in zip(r, shapes, strict=True)]
                        for r, a in zip(split, shapes, strict=True)
                    ],
                )


@dataclass
class Stream:
    """The places where the parents norm a stream that is free to turn: what they have in common there, each row at unit
    length. Unlike units of a fixed basis, directions count as far as they vary."""

    space: str
    centred: bool
    nodes: tuple[fx.Node, ...]
    sizes: tuple[int, ...]
    sums: tuple[Sums, Sums] = field(init=False)

    def __post_init__(self) -> None:
        self.sums = (Sums.empty(sum(self.sizes)), Sums.empty(sum(self.sizes)))

    def add(self, values: Sequence[Tensor], rows: Rows, batch: int) -> None:
        parts = [rows.of(value, -1, batch) for value in values]
        if len({len(part) for part in parts}) > 1:
            return
        parts = [part - part.mean(1, keepdim=True) if self.centred else part for part in parts]
        side = torch.cat([part / part.norm(dim=1, keepdim=True).clamp_min(1e-30) for part in parts], 1)
        middle = len(side) // 2
        self.sums[0].add(side[:middle])
        self.sums[1].add(side[middle:])

    def evidence(self, half: int | None) -> Iterable[Evidence]:
        sums = self.sums[0].plus(self.sums[1]) if half is None else self.sums[half]
        if sums.count:
            sizes = list(self.sizes)
            split = [torch.split(row, sizes, 1) for row in torch.split(sums.xx / sums.count, sizes, 0)]
            yield Evidence((self.space,), split)


def _streams(layout: Layout) -> Iterable[Stream]:
    seen = set()
    for norm in layout.norms:
        if norm.places not in seen:
            seen.add(norm.places)
            yield Stream(norm.space, norm.centred, norm.places, layout.sites[norm.space].sizes)


def axis_blocks(supernet: SuperNet) -> Mapping[str, list[Block]]:
    """By name of the map: its blocks that are products of spaces which stand in all parents alike."""
    found = {}
    for name, place in supernet.places.items():
        module = supernet.program.maps[name]
        assert isinstance(module, AxisMap)
        found[name] = [b for b in blocks_of(module, place) if _fits(b)]
    return found


def _fits(block: Block) -> bool:
    sizes = [
        (block.factors, len(block.merged)),
        *((f, len(own)) for f, own in zip(block.theirs, block.own, strict=True)),
    ]
    return all(len(f) == len(block.factors) and torch.Size([x.size for x in f]).numel() == n for f, n in sizes)


def _spots(layout: Layout, turns: bool) -> Iterable[Spot]:
    may_turn = {name for name, site in layout.sites.items() if turns and site.group in TURNED}
    blocks = axis_blocks(layout.supernet)
    read = {
        f.space
        for n, p in layout.supernet.places.items()
        if _is_feature(p, "read")
        for b in blocks[n]
        for f in b.factors
    }
    turned = {norm.space for norm in layout.norms}
    seen = set()
    for name, place in layout.supernet.places.items():
        nodes = tuple(node for node in place.of if isinstance(node, fx.Node))
        if len(nodes) < len(place.of) or (nodes, place.axis) in seen:
            continue
        seen.add((nodes, place.axis))
        chosen = [b for b in blocks[name] if place.role == "read" or not {b.factors[-1].space} <= read]
        chosen = [b for b in chosen if b.factors[-1].space not in turned]
        if chosen:
            yield Spot(nodes, place.axis, chosen, [b.factors[-1].space in may_turn for b in chosen])


def _is_feature(place: Place, role: str) -> bool:
    return place.role == role and all(isinstance(node, fx.Node) for node in place.of)
