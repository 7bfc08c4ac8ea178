"""Planes of rotary positions, turned: queries and keys of a parent by one angle a plane, which changes no score.

    q, k      -->      R(θ) q, R(θ) k            R(θ) commutes with the turns that a position makes in the same plane

A plane is two coordinates that share one index of a space that has an order: halves apart, or side by side. No map has
such a turn where the halves are apart, so the parents' weights are turned before their units are matched; each still
computes what it did, which is tried by random angles first.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch
from torch import Tensor

from fxmerge.coupling.elements import Deviation
from fxmerge.ir.probe import probe
from fxmerge.ir.program import Program
from fxmerge.ir.space import AxisExpr, pieces
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.alignment.layout import Layout
from fxmerge.methods.alignment.solve import Alignment
from fxmerge.methods.alignment.weights import rows_of

CLOSE = 1e-3
"""Of the outputs' largest entry, in float32 if that is what the parents compute in."""
STILL = 1e-4
"""Angles that turn nothing."""
TURNS = 20


@dataclass(frozen=True)
class Pair:
    """Coordinates of planes along an axis: their places, shaped like the factors."""

    factors: tuple[str, ...]
    first: Tensor
    second: Tensor


@dataclass(frozen=True)
class Turned:
    """Parents whose planes have been turned, and the spaces of these planes."""

    net: SuperNet
    spaces: frozenset[str]


def pairs_of(axis: AxisExpr, space: str) -> list[Pair]:
    """The planes that share an index of a space, on one axis; none where their coordinates are not two and two."""
    found = [(tuple(f.space for f in p.factors), p) for p in pieces(axis) if space in [f.space for f in p.factors]]
    pairs = []
    while found:
        names, piece = found.pop(0)
        if piece.factors[-1].size == 2 and names[-1] != space:
            pairs.append(Pair(names[:-1], piece.index[..., 0], piece.index[..., 1]))
        elif found and found[0][0] == names:
            pairs.append(Pair(names, piece.index, found.pop(0)[1].index))
        else:
            return []
    return pairs


def turning_planes(layout: Layout) -> frozenset[str]:
    """The spaces whose planes turn: every parent gives what it gave where they are turned at random."""
    alignment = Alignment(layout)
    fixed = [s for s, site in layout.sites.items() if site.role == "query_key" and not site.movable]
    found = [(space, _Planes.of(alignment, layout.supernet, space)) for space in fixed]
    return frozenset(space for space, planes in found if planes is not None and planes.hold())


def turn_planes(alignment: Alignment, spaces: Collection[str]) -> Turned | None:
    """All parents' planes turned onto one another, heads as they are matched; None where nothing is left to turn."""
    net, turned = alignment.layout.supernet, set()
    for space in spaces:
        planes = _Planes.of(alignment, net, space)
        angles = planes.angles() if planes else []
        if planes and max(float(angle.abs().max()) for angle in angles) > STILL:
            net = planes.turned(angles)
            turned.add(space)
    return Turned(net, frozenset(turned)) if turned else None


@dataclass(frozen=True)
class _Planes:
    """The planes of one space, in every tensor that writes them."""

    alignment: Alignment
    net: SuperNet
    space: str
    tensors: Mapping[str, tuple[int, list[list[Pair]]]]
    """By the template's name: the axis, and per parent the planes on it."""
    owners: tuple[str, ...]
    """The spaces for whose every index a plane has an angle of its own."""

    @classmethod
    def of(cls, alignment: Alignment, net: SuperNet, space: str) -> _Planes | None:
        """None where some tensor has no planes of it, or none that can be turned."""
        assert net.spaces is not None
        tensors: dict[str, tuple[int, list[list[Pair]]]] = {}
        origins = {(origin.owner, origin.name) for origin in net.program.origins.values()}
        for name, axes in net.spaces.tensors.items():
            with_space = [i for i, axis in enumerate(axes) if any(space in p for p in _names(axis))]
            if not with_space or name not in net.spaces.transformed:
                continue
            theirs = net.names.get(name, ())
            ours = axes[with_space[0]]
            own = [s.tensors[n][with_space[0]] for s, n in zip(net.parents_spaces, theirs, strict=False)]
            pairs = [_named(pairs_of(axis, _twin(ours, axis, space)), pairs_of(ours, space)) for axis in own]
            if len(with_space) > 1 or not theirs or not all(pairs) or not origins >= set(enumerate(theirs)):
                return None
            tensors[name] = with_space[0], pairs
        kinds = [set(p.factors) for _, pairs in tensors.values() for p in pairs[0]]
        if not kinds:
            return None
        common = set.intersection(*kinds) - {space}
        first = next(iter(tensors.values()))[1][0][0]
        return cls(alignment, net, space, tensors, tuple(f for f in first.factors if f in common))

    def angles(self) -> list[Tensor]:
        """Per parent (owners …, planes): the angles at which all parents' planes are nearest, the template's zero."""
        layout, count = self.alignment.layout, self.alignment.layout.count
        found = [torch.zeros(self._shape(k), dtype=torch.float64) for k in range(count)]
        rows = {n: rows_of(self.alignment, n, self.net.names[n], axis) for n, (axis, _) in self.tensors.items()}
        for merged in product(*(range(layout.sites[owner].size) for owner in self.owners)):
            units = self._units(dict(zip(self.owners, merged, strict=True)))
            present = [k for k in range(count) if all(u[k] is not None for u in units.values())]
            at = {k: tuple(units[owner][k] for owner in self.owners) for k in present}
            seen = {k: self._seen(rows, k, dict(zip(self.owners, merged, strict=True)), at[k]) for k in present}
            for k, angle in _nearest(seen, layout.supernet.template).items():
                found[k][at[k]] = angle
        return found

    def _shape(self, k: int) -> tuple[int, ...]:
        pair = next(iter(self.tensors.values()))[1][k][0]
        sizes = dict(zip(pair.factors, pair.first.shape, strict=True))
        return tuple(sizes[f] for f in (*self.owners, self.space))

    def _units(self, merged: Mapping[str, int]) -> dict[str, tuple[int | None, ...]]:
        """Per owner: every parent's unit that becomes the merged one."""
        layout, found = self.alignment.layout, {}
        for owner, unit in merged.items():
            path = tuple(merged[outer] for outer in layout.path(owner) if outer in merged)
            found[owner] = self.alignment.of(owner, path).unit(unit)
        return found

    def _seen(
        self, rows: Mapping[str, Sequence[Tensor]], k: int, merged: Mapping[str, int], at: tuple[int | None, ...]
    ) -> Tensor:
        """(planes, n) complex: what a parent's weights make of every plane, other factors in one order."""
        parts = []
        for name, (_, pairs) in self.tensors.items():
            for pair in pairs[k]:
                plane = torch.complex(rows[name][k][:, pair.first], rows[name][k][:, pair.second])
                names = list(pair.factors)
                for owner, unit in zip(self.owners, at, strict=True):
                    assert unit is not None
                    plane = plane.select(names.index(owner) + 1, unit)
                    names.remove(owner)
                for other in [f for f in names if f != self.space and f in self.alignment.layout.sites]:
                    path = tuple(merged[o] for o in self.alignment.layout.path(other) if o in merged)
                    order = self.alignment.of(other, path).to[k].to(plane.dtype)
                    plane = torch.movedim(
                        torch.movedim(plane, names.index(other) + 1, -1) @ order.T, -1, names.index(other) + 1
                    )
                parts.append(plane.movedim(names.index(self.space) + 1, 0).flatten(1))
        return torch.cat(parts, 1)

    def turned(self, angles: Sequence[Tensor]) -> SuperNet:
        """The SuperNet with every parent's planes turned."""
        parents = tuple(self._parent(k, angle) for k, angle in enumerate(angles))
        tensors = dict(self.net.program.tensors)
        for ours, origin in self.net.program.origins.items():
            if origin.name in self._theirs(origin.owner):
                tensors[ours] = parents[origin.owner].tensors[origin.name]
        return replace(self.net, parents=parents, program=self.net.program.evolve(tensors=tensors))

    def _theirs(self, k: int) -> dict[str, str]:
        return {self.net.names[name][k]: name for name in self.tensors}

    def _parent(self, k: int, angle: Tensor) -> Program:
        parent = self.net.parents[k]
        tensors = dict(parent.tensors)
        for theirs, name in self._theirs(k).items():
            axis, pairs = self.tensors[name]
            value = tensors[theirs].detach().double().movedim(axis, -1).clone()
            for pair in pairs[k]:
                shape = [
                    n if f in (*self.owners, self.space) else 1
                    for f, n in zip(pair.factors, pair.first.shape, strict=True)
                ]
                cos, sin = angle.cos().reshape(shape), angle.sin().reshape(shape)
                a, b = value[..., pair.first], value[..., pair.second]
                value[..., pair.first], value[..., pair.second] = cos * a - sin * b, sin * a + cos * b
            tensors[theirs] = value.movedim(-1, axis).to(tensors[theirs].dtype).contiguous()
        return parent.evolve(tensors=tensors)

    @torch.no_grad()
    def hold(self) -> bool:
        """Whether parents whose planes are turned at random give what they give, on a few inputs."""
        generator = torch.Generator().manual_seed(0)
        for k, parent in enumerate(self.net.parents):
            angle = torch.randn(self._shape(k), generator=generator, dtype=torch.float64) * 3
            inputs = probe(parent)
            before, after = parent.run(inputs), self._parent(k, angle).run(inputs)
            if any(not Deviation.between(after[n], value).error < CLOSE for n, value in before.items()):
                return False
        return True


def _nearest(seen: Mapping[int, Tensor], template: int) -> dict[int, Tensor]:
    """Per parent: the angle of every plane, parents in turn against the sum of the others."""
    found = {k: torch.zeros(len(planes), dtype=torch.float64) for k, planes in seen.items()}
    common = {(a, b): (seen[a].conj() * seen[b]).sum(1) for a in seen for b in seen if a != b}
    order = sorted(seen, key=lambda k: k != template)
    placed = order[:1]
    for _ in range(TURNS if len(order) > 2 else 1):
        before = {k: angle.clone() for k, angle in found.items()}
        for k in order[1:]:
            others = [a for a in (order if len(placed) == len(order) else placed) if a != k]
            towards = torch.stack(
                [torch.polar(torch.ones_like(found[a]), -found[a]) * common[a, k] for a in others]
            ).sum(0)
            found[k] = -towards.angle()
            placed = placed if k in placed else [*placed, k]
        if all(torch.allclose(before[k], found[k], atol=STILL) for k in found):
            break
    return found


def _named(theirs: Sequence[Pair], ours: Sequence[Pair]) -> list[Pair]:
    """A parent's planes, their factors by the merged model's names; none where they are not the same planes."""
    alike = [len(a.factors) for a in theirs] == [len(b.factors) for b in ours]
    return [replace(a, factors=b.factors) for a, b in zip(theirs, ours, strict=True)] if alike else []


def _names(axis: AxisExpr) -> list[tuple[str, ...]]:
    return [tuple(f.space for f in p.factors) for p in pieces(axis)]


def _twin(ours: AxisExpr, theirs: AxisExpr, space: str) -> str:
    """What a parent calls a space of the merged model, where their axes are built alike."""
    for mine, own in zip(_names(ours), _names(theirs), strict=False):
        if space in mine and len(mine) == len(own):
            return own[mine.index(space)]
    return ""
