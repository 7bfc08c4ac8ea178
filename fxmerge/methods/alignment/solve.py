"""Decide the alignment of every space from evidence: owners with what is inside them, the outermost first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor

from fxmerge.methods.alignment.evidence import Evidence
from fxmerge.methods.alignment.layout import Layout, Site
from fxmerge.methods.alignment.matches import Similarity

CLOSE = 1e-7
"""Of carriers that are the same."""
Path = tuple[int, ...]
"""Merged units of the owners of a space, the outermost first."""


@dataclass(frozen=True)
class Carriers:
    """Of one space, or of what is inside one merged unit of its owner: per parent the ways there and back."""

    to: tuple[Tensor, ...]
    """Per parent (d × d_k): in an order, a turn or groups; not yet divided among the parents."""
    back: tuple[Tensor, ...]
    """Per parent (d_k × d)."""

    @classmethod
    def of(cls, to: Sequence[Tensor]) -> Carriers:
        return cls(tuple(to), tuple(each.T for each in to))

    def unit(self, merged: int) -> tuple[int | None, ...]:
        """Per parent: the unit that becomes this merged unit, if one does."""
        return tuple(int(t[merged].abs().argmax()) if bool(t[merged].any()) else None for t in self.to)


class Decision(Protocol):
    """How one method aligns one space."""

    def __call__(self, site: Site, similarity: Similarity, owner: bool) -> Carriers: ...

    def score(self, site: Site, similarity: Tensor, owner: bool) -> float:
        """How well one parent's units can be brought to another's (d_l × d_k)."""
        ...


@dataclass
class Alignment:
    """An element of every space's group for every parent."""

    layout: Layout
    carriers: dict[tuple[str, Path], Carriers] = field(default_factory=dict)
    across: dict[tuple[str, ...], Carriers] = field(default_factory=dict)
    """By the spaces of a product that is carried as one axis: no element of the group of any of them."""
    apart: dict[object, dict[tuple[str, Path], Carriers]] = field(default_factory=dict)
    """By map, or by name of a tensor of the SuperNet's own: what it alone is carried by."""

    planes: frozenset[str] = frozenset()
    """Spaces of rotary planes that have been turned in the parents' weights."""

    def at(self, key: object) -> Alignment:
        """The alignment as one map or tensor takes part in it."""
        own = self.apart.get(key)
        return replace(self, carriers={**self.carriers, **own}) if own else self

    def parted(self, space: str) -> bool:
        """Whether a space is carried otherwise at some places than at others."""
        found: dict[Path, list[Carriers]] = {}
        for own in self.apart.values():
            for (name, path), each in own.items():
                if name == space:
                    found.setdefault(path, []).append(each)
        pairs = [(a, b) for own in found.values() for o in own for a, b in zip(o.to, own[0].to, strict=True)]
        return any(not torch.allclose(a, b, atol=CLOSE) for a, b in pairs)

    def of(self, space: str, path: Path) -> Carriers:
        """The identity where nothing was decided."""
        known = self.carriers.get((space, path))
        if known is None:
            site = self.layout.sites[space]
            eyes = [torch.eye(site.size, d, dtype=torch.float64, device=self.device) for d in site.sizes]
            known = Carriers.of(eyes)
        return known

    @property
    def everything(self) -> dict[object, Carriers]:
        """All that was decided."""
        return {key: each for found in (self.carriers, self.across) for key, each in found.items()}

    @property
    def device(self) -> torch.device:
        """Where the carriers are."""
        return next((each.to[0].device for each in self.carriers.values()), torch.device("cpu"))


@dataclass(frozen=True)
class _At:
    """Where the owners stand: merged units, and per parent its own."""

    path: Path = ()
    units: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)

    def inside(self, space: str, merged: int, units: tuple[int | None, ...]) -> _At:
        return _At((*self.path, merged), {**self.units, space: units})


def align(alignment: Alignment, root: str, evidence: Sequence[Evidence], decide: Decision) -> None:
    """Decide a space and all that is inside it."""
    for each in (root, *alignment.layout.tree(root)):  # what was decided before is no evidence
        for key in [k for k in alignment.carriers if k[0] == each]:
            del alignment.carriers[key]
    _Solver(alignment, evidence, decide).solve(root, _At())


def again(
    alignment: Alignment, space: str, evidence: Iterable[Evidence], decide: Decision
) -> dict[tuple[str, Path], Carriers]:
    """What some evidence alone says of a space whose owners are decided; nothing where it says nothing."""
    solver, found = _Solver(alignment, list(evidence), decide), {}
    owners = alignment.layout.path(space)
    for path in [path for name, path in alignment.carriers if name == space]:
        at = _At()
        for owner, merged in zip(owners, path, strict=True):
            at = at.inside(owner, merged, alignment.of(owner, at.path).unit(merged))
        similarity = solver._similarity(space, at)
        if any(bool(part.any()) for a, row in enumerate(similarity) for b, part in enumerate(row) if a != b):
            found[space, path] = decide(alignment.layout.sites[space], similarity, False)
    return found


@dataclass
class _Solver:
    alignment: Alignment
    evidence: Sequence[Evidence]
    decide: Decision

    @property
    def layout(self) -> Layout:
        return self.alignment.layout

    def solve(self, space: str, at: _At) -> None:
        site, children = self.layout.sites[space], self.layout.inside(space)
        carriers = self.decide(site, self._similarity(space, at), bool(children))
        self.alignment.carriers[space, at.path] = carriers
        for merged in range(site.size if children else 0):
            units = carriers.unit(merged)
            for child in children:
                if any(unit is not None for unit in units):
                    self.solve(child, at.inside(space, merged, units))

    def _similarity(self, space: str, at: _At) -> list[list[Tensor]]:
        count = self.layout.count
        return [[self._pair(space, at, a, b) for b in range(count)] for a in range(count)]

    def _pair(self, space: str, at: _At, a: int, b: int) -> Tensor:
        """Similarity of two parents' units of a space, with all that is inside them at its best."""
        site = self.layout.sites[space]
        found = torch.zeros(site.sizes[a], site.sizes[b], dtype=torch.float64)
        for each in self.evidence:
            if (part := self._reduced(each, space, at, a, b)) is not None:
                found += part
        children = self.layout.inside(space)
        for i in range(site.sizes[a] if children and a != b else 0):
            for j in range(site.sizes[b]):
                units = tuple(i if k == a else j if k == b else None for k in range(self.layout.count))
                found[i, j] += sum(self._best(child, at.inside(space, -1, units), a, b) for child in children)
        return found

    def _best(self, space: str, at: _At, a: int, b: int) -> float:
        site, children = self.layout.sites[space], self.layout.inside(space)
        return self.decide.score(site, self._pair(space, at, a, b), bool(children))

    def _reduced(self, evidence: Evidence, space: str, at: _At, a: int, b: int) -> Tensor | None:
        """What evidence says of one space alone; None where it says nothing, or says it through what is inside."""
        if evidence.factors.count(space) != 1:
            return None
        if any(owner not in evidence.factors for owner in self.layout.path(space)):
            return None
        inside = set(self.layout.tree(space)[1:])
        if inside & set(evidence.factors):
            return None
        common, n = evidence.common[a][b], len(evidence.factors)
        for position in reversed(range(n)):
            factor = evidence.factors[position]
            if factor == space:
                continue
            common = self._without(common, position, n, factor, at, a, b)
            n -= 1
        return common

    def _without(self, common: Tensor, position: int, n: int, factor: str, at: _At, a: int, b: int) -> Tensor:
        """`common` summed over a factor of both parents: where it is settled at its match, otherwise unit by unit."""
        if factor in at.units:
            i, j = at.units[factor][a], at.units[factor][b]
            if i is None or j is None:
                shape = [d for p, d in enumerate(common.shape) if p not in (position, n + position)]
                return common.new_zeros(shape)
            return common.select(n + position, j).select(position, i)
        match = self._match(factor, at, a, b, common.shape[position], common.shape[n + position])
        moved = common.movedim((position, n + position), (-2, -1))
        return (moved * match).sum((-2, -1))

    def _match(self, factor: str, at: _At, a: int, b: int, rows: int, columns: int) -> Tensor:
        known = self.alignment.carriers.get(
            (factor, at.path[: len(self.layout.path(factor))] if factor in self.layout.sites else ())
        )
        if known is None or factor not in self.layout.sites:
            return torch.eye(rows, columns, dtype=torch.float64)
        return known.to[a].T @ known.to[b]


def scores(layout: Layout, evidence: Iterable[Evidence], space: str, carriers: Carriers) -> float:
    """What evidence says of given carriers of a space that is in none: the sum over all pairs of parents."""
    solver = _Solver(Alignment(layout), list(evidence), None)  # type: ignore[arg-type]
    return sum(
        float((carriers.to[a] @ solver._pair(space, _At(), a, b) * carriers.to[b]).sum())
        for a in range(layout.count)
        for b in range(a + 1, layout.count)
    )
