"""The parents' spaces beside the merged model's: sizes, the group that all of them allow, and which is inside which."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, fx

from fxmerge.ir.space import AxisExpr, Leaf, leaves
from fxmerge.ir.supernet import SuperNet
from fxmerge.methods.map_nodes import Merge
from fxmerge.methods.scales import WriteScale

CHAIN = ("identity", "permutation", "signed_permutation", "orthogonal", "invertible")
TURNED = ("orthogonal", "invertible")
"""Groups that hold every turn."""


@dataclass(frozen=True)
class Site:
    """A space of the merged model and of every parent."""

    space: str
    role: str
    size: int
    sizes: tuple[int, ...]
    """Per parent."""
    group: str
    """What all of them tolerate: one of `TOLERANCES`."""
    owner: str | None
    """The space for each of whose indices this one may be aligned anew."""
    centred: bool = False
    """Whether what turns it must keep the vector of ones."""

    @property
    def movable(self) -> bool:
        """Whether its units have other places than their own."""
        return self.group not in ("identity", "rotary")


@dataclass(frozen=True)
class FoldedNorm:
    """A norm whose scale and shift are read where it is read."""

    space: str
    scale: str
    """Names of the SuperNet's own tensors, empty where it has none."""
    shift: str
    scales: tuple[Tensor, ...]
    """Per parent."""
    shifts: tuple[Tensor, ...]
    """Per parent; none where it has no shift."""
    reads: frozenset[str]
    """The unmerge maps behind it."""
    tensors: frozenset[str]
    """The template's tensors that read it."""
    places: tuple[fx.Node, ...]
    """Every parent's value that is normed."""
    centred: bool
    """Whether its mean is taken away."""


@dataclass(frozen=True)
class Layout:
    """The spaces on which maps stand."""

    supernet: SuperNet
    sites: Mapping[str, Site]
    apart: Mapping[str, str]
    """Spaces that are left as they are because the parents' do not correspond, and why."""
    norms: tuple[FoldedNorm, ...] = ()
    """Those of streams that are free to turn."""
    scales: tuple[WriteScale, ...] = ()
    """What scales the writes into them: part of the maps that write."""
    kept: Mapping[str, str] = field(default_factory=dict)
    """Streams that might turn but for their norms, which cannot be folded, and why."""
    aside: frozenset[str] = frozenset()
    """Spaces that say nothing yet: what stands along them is no evidence, of other spaces neither."""

    @classmethod
    def of(cls, supernet: SuperNet) -> Layout:
        """From the places of a SuperNet's maps."""
        theirs: dict[str, tuple[Leaf, ...]] = {}
        apart: dict[str, str] = {}
        for place in supernet.places.values():
            found = list(_side_by_side(place.merged, place.parents))
            for ours, own in found:
                if theirs.setdefault(ours.space, own) != own:
                    apart[ours.space] = "a parent has several spaces where the merged model has one"
            if not found:
                apart.update((leaf.space, "the parents' axes are built differently") for leaf in leaves(place.merged))
        sites = {name: _site(supernet, name, own) for name, own in theirs.items() if name and name not in apart}
        return cls(supernet, sites, apart)

    @property
    def count(self) -> int:
        """Number of parents."""
        return len(self.supernet.parents)

    @cached_property
    def folded(self) -> frozenset[str]:
        """The SuperNet's own tensors that maps take in: they say nothing of a stream that is turned."""
        return frozenset({name for n in self.norms for name in (n.scale, n.shift)} | {s.tensor for s in self.scales})

    @cached_property
    def roots(self) -> tuple[str, ...]:
        """The spaces that are inside none: each is decided with all that is inside it."""
        return tuple(name for name, site in self.sites.items() if site.owner is None)

    @cached_property
    def unlike(self) -> frozenset[str]:
        """Tensors of stems that read other inputs in every parent: what they write is told from nothing in common."""
        net, found = self.supernet, set[str]()
        by_own = {(k, own): name for name, theirs in net.names.items() for k, own in enumerate(theirs)}
        for joined in (m for node in net.program.graph.nodes if net.copies and (m := Merge.of(node))):
            tensors = {n for call in joined.calls for n in call.all_input_nodes if n.op == "get_attr"}
            origins = [net.program.origins[str(n.target)] for n in tensors if n.target in net.program.origins]
            names = {by_own[o.owner, o.name] for o in origins if (o.owner, o.name) in by_own}
            if len(joined.parents) < self.count and not all(map(self._comparable, names)):
                found |= names
        return frozenset(found)

    def _comparable(self, name: str) -> bool:
        """Whether the parents' tensors of this name agree along every axis that is no space of theirs."""
        spaces, theirs = self.supernet.spaces, self.supernet.names[name]
        assert spaces is not None
        own = [parent.tensors[each].shape for parent, each in zip(self.supernet.parents, theirs, strict=True)]
        fixed = [
            i for i, axis in enumerate(spaces.tensors[name]) if not any(x.space in self.sites for x in leaves(axis))
        ]
        return len({tuple(shape[i] for i in fixed) for shape in own}) == 1

    def inside(self, space: str) -> tuple[str, ...]:
        """The spaces directly inside one."""
        return tuple(name for name, site in self.sites.items() if site.owner == space)

    def tree(self, root: str) -> tuple[str, ...]:
        """A space and all that is inside it."""
        found = [root]
        for each in found:
            found += self.inside(each)
        return tuple(found)

    def path(self, space: str) -> tuple[str, ...]:
        """The owners of a space, the outermost first."""
        owner = self.sites[space].owner
        return () if owner is None else (*self.path(owner), owner)


def _side_by_side(merged: AxisExpr, parents: tuple[AxisExpr, ...]) -> Iterator[tuple[Leaf, tuple[Leaf, ...]]]:
    """The spaces of an axis beside each parent's; nothing where the axes are built differently."""
    ours, theirs = list(leaves(merged)), [list(leaves(axis)) for axis in parents]
    if all(len(own) == len(ours) for own in theirs):
        yield from ((leaf, tuple(own[i] for own in theirs)) for i, leaf in enumerate(ours))


def _site(supernet: SuperNet, name: str, own: tuple[Leaf, ...]) -> Site:
    assert supernet.spaces is not None
    ours = supernet.spaces.spaces[name]
    all_of_them = [ours, *(s.spaces[leaf.space] for s, leaf in zip(supernet.parents_spaces, own, strict=True))]
    groups = [space.tolerance for space in all_of_them]
    group = min(groups, key=CHAIN.index) if all(g in CHAIN for g in groups) else groups[0]
    if "rotary" in groups:
        group = "rotary" if set(groups) == {"rotary"} else "identity"
    owned = all(space.within is not None for space in all_of_them)
    return Site(name, ours.role, ours.size, tuple(leaf.size for leaf in own), group, ours.within if owned else None)
