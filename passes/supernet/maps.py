"""One map per merged axis: who shares it, how its blocks lie, and how parents of other sizes fit in."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod
from typing import Any

import torch
from networkx.utils import UnionFind
from torch import Tensor, fx, nn

from fxmerge.errors import LineUpError
from fxmerge.ir.maps import AxisMap, Kind, Map
from fxmerge.ir.program import Program
from fxmerge.ir.space import AxisExpr, Piece, leaves, pieces
from fxmerge.ir.supernet import Own, Place
from passes.supernet.site import Operand, Sites

Key = tuple[Any, ...]
"""("write" | "read", value, axis) for an axis of a value, (…, tensor name, axis) for an axis spread over several."""


@dataclass
class Maps:
    """The maps of a set of lined-up parents.

    Readers of one axis of one value share their unmerge map; a weight used in several places keeps one map per axis,
    so that it stays one weight; a weight and its bias share the merge map of the call that uses both.
    """

    template: Program
    sites: Sites
    others: Sequence[Sites]
    pairs: Sequence[Mapping[fx.Node, fx.Node]]
    modules: dict[str, nn.Module] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    _groups: Any = field(default_factory=UnionFind)
    _names: dict[Key, str] = field(default_factory=dict)
    _later: set[Key] = field(default_factory=set)
    """Axes written beside another one, whose map holds the shares of the average already."""

    def __post_init__(self) -> None:
        for site in self.sites.sites.values():
            if site.maps and site.node not in self.sites.tail:
                for operand in site.operands:
                    for axis, key in self._keys(operand):
                        covers = repr([None if c is None else c.tolist() for c in operand.covers])
                        self._groups.union(key, (key[0], operand.root, axis, covers))
        for site in self.sites.sites.values():
            for operand in site.operands:
                written = [key for _, key in self._keys(operand) if key[0] == "write"]
                self._later.update(self._groups[key] for key in written[1:])

    # -- asking for a map ----------------------------------------------------------------------------

    def written(self, node: fx.Node, axis: int) -> str:
        """Name of the merge map behind axis `axis` of what the parents write at `node`."""
        return self._get(("write", node, axis))

    def stand_alone(self, name: str) -> None:
        """Let a merge map serve every parent by itself: nothing is added up behind it."""
        for block in self.modules[name].modules():
            if isinstance(block, Map):
                block.alone = True
                block.average()

    def read(self, node: fx.Node, axis: int) -> str:
        """Name of the unmerge map before the readers of axis `axis` of `node`."""
        return self._get(("read", node, axis))

    def of_operand(self, operand: Operand, roles: Sequence[str] = ("write", "read")) -> list[tuple[int, str]]:
        """(axis of the root tensor, map name) for each of its axes that has a map of these roles."""
        return [(axis, self._get(key)) for axis, key in self._keys(operand) if key[0] in roles]

    def axes(self, operand: Operand) -> list[int]:
        """The axes of the root tensor that have maps; none is made for it."""
        return [axis for axis, _ in self._keys(operand)]

    def has(self, operand: Operand) -> bool:
        return bool(self._keys(operand))

    def _keys(self, operand: Operand) -> list[tuple[int, Key]]:
        keys: list[tuple[int, Key]] = []
        for axis, use in enumerate(operand.uses):
            own = self.sites.spaces.tensors[operand.root][axis]
            if use is None or not self.sites.is_merged(own):
                continue
            keys.append((axis, (use.role, operand.root, axis) if use.axis is None else (use.role, use.on, use.axis)))
        return keys

    def _get(self, key: Key) -> str:
        group = self._groups[key]
        if group not in self._names:
            name = f"{self._prefix}.{'m' if key[0] == 'write' else 'u'}{len(self.modules)}"
            self._names[group] = name
            kind: Kind = "unmerge" if key[0] == "read" else "turn" if group in self._later else "merge"
            self.modules[name] = self._build(kind, *self._axes(key))
            self.places[name] = self._place(key)
        return self._names[group]

    @cached_property
    def _prefix(self) -> str:
        """The first part of the maps' names: no task and no part of the template is called so."""
        return free("maps", [_first(n) for n in (*self.template.tensors, *(s.program.task for s in self.others))])

    def _axes(self, key: Key) -> tuple[AxisExpr, list[AxisExpr]]:
        """The template's and every parent's structure of the axis that `key` means."""
        _, what, axis = key
        if isinstance(what, fx.Node):
            own = [sites.spaces.axes[pairs[what]][axis] for sites, pairs in zip(self.others, self.pairs, strict=True)]
            return self.sites.spaces.axes[what][axis], own
        own = [s.spaces.tensors[self._name(k, what)][axis] for k, s in enumerate(self.others)]
        return self.sites.spaces.tensors[what][axis], own

    def _place(self, key: Key) -> Place:
        role, what, axis = key
        merged, own = self._axes(key)
        if isinstance(what, fx.Node):
            return Place(role, tuple(pairs[what] for pairs in self.pairs), axis, merged, tuple(own))
        return Place(role, tuple(self._name(k, what) for k in range(len(self.others))), axis, merged, tuple(own))

    def _build(self, kind: Kind, merged: AxisExpr, own: list[AxisExpr]) -> AxisMap:
        like = self._weight
        axis_map = AxisMap(kind, merged.size, [axis.size for axis in own], None if like is None else like.device)
        for piece, theirs in _blocks(merged, own):
            sizes = [p.index.numel() for p in theirs]
            shared = kind != "merge" and not any(leaf.space in self.sites.mergeable for leaf in piece.factors)
            block = None
            if not shared:
                block = Map(kind, piece.index.numel(), sizes, [support(piece, p) for p in theirs], like)
            axis_map.add(block, piece.index.reshape(-1), [p.index.reshape(-1) for p in theirs])
        return axis_map

    # -- tensors that enter as they are --------------------------------------------------------------

    def own(self, name: str) -> Own:
        """The parents' versions of a tensor, fitted to the template's shape."""
        axes = self.sites.spaces.tensors[name]
        values, masks = [], []
        for k, sites in enumerate(self.others):
            other = self._name(k, name)
            value = self._tensors(k)[other].detach()
            if value.ndim != len(axes):
                ranks = f"{name} has {len(axes)} axes and {other} has {value.ndim}"
                raise LineUpError(ranks, "merge models of one structure")
            seen = torch.ones_like(value)
            for axis, (a, b) in enumerate(zip(axes, sites.spaces.tensors[other], strict=True)):
                value, seen = _fit(value, axis, a, b), _fit(seen, axis, a, b)
            values.append(value)
            masks.append(seen)
        return Own(tuple(values), tuple(masks), tuple(self._name(k, name) for k in range(len(self.others))))

    def is_statistic(self, name: str) -> bool:
        """Whether a buffer changes with its spaces (running statistics), so that the parents' are averaged."""
        return name in self.sites.spaces.transformed and name not in self.template.parameters

    def _tensors(self, k: int) -> Mapping[str, Tensor]:
        return self.others[k].program.tensors

    def _name(self, k: int, name: str) -> str:
        """Parent k's name of a tensor of the template."""
        return self._names_of[k][name]

    def names(self) -> dict[str, tuple[str, ...]]:
        """What every parent calls each tensor of the template that all of them have."""
        shared = set.intersection(*(set(names) for names in self._names_of))
        return {name: tuple(names[name] for names in self._names_of) for name in sorted(shared)}

    @cached_property
    def _names_of(self) -> list[dict[str, str]]:
        nodes = [n for n in self.template.graph.nodes if n.op == "get_attr"]
        return [{str(n.target): str(pairs[n].target) for n in nodes if n in pairs} for pairs in self.pairs]

    @cached_property
    def _weight(self) -> Tensor | None:
        """A parameter, to tell where the maps belong: all of a program's parameters are on one device."""
        return next((self.template.tensors[name] for name in sorted(self.template.parameters)), None)


def free(word: str, taken: Iterable[str]) -> str:
    """`word`, with underscores behind it until it is none of `taken`."""
    words = set(taken)
    while word in words:
        word += "_"
    return word


def _first(path: str) -> str:
    return path.partition(".")[0]


@lru_cache(maxsize=1024)
def _pieces(axis: AxisExpr) -> tuple[Piece, ...]:
    """`pieces`, made once: all maps of one structure share their positions."""
    return pieces(axis)


def _blocks(merged: AxisExpr, own: Sequence[AxisExpr]) -> list[tuple[Piece, list[Piece]]]:
    """The pieces of an axis beside each parent's; one piece for all of it where the parents' do not correspond."""
    ours, theirs = _pieces(merged), [_pieces(axis) for axis in own]
    if any(len(p) != len(ours) for p in theirs):
        whole = Piece(torch.arange(merged.size), tuple(leaves(merged)))
        return [(whole, [Piece(torch.arange(a.size), tuple(leaves(a))) for a in own])]
    return [(piece, [p[i] for p in theirs]) for i, piece in enumerate(ours)]


def support(ours: Piece, theirs: Piece) -> tuple[Tensor, Tensor]:
    """(positions in our block, positions in their block) of the rectangular identity, factor by factor.

    With factors of the same number (heads × width, say) head i meets head i and coordinate j meets coordinate j.
    """
    return _support(tuple(ours.index.shape), tuple(theirs.index.shape))


@lru_cache(maxsize=1024)
def _support(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    if len(a) != len(b):
        n = torch.arange(min(prod(a), prod(b)))
        return n, n
    window = tuple(slice(0, min(x, y)) for x, y in zip(a, b, strict=True))
    left = torch.arange(prod(a)).reshape(a)[window]
    right = torch.arange(prod(b)).reshape(b)[window]
    return left.reshape(-1), right.reshape(-1)


def _fit(tensor: Tensor, axis: int, ours: AxisExpr, theirs: AxisExpr) -> Tensor:
    """`tensor` with an axis of a parent's size brought to ours: cut, or filled with zeros."""
    if ours.size == theirs.size:
        return tensor
    moved = tensor.movedim(axis, 0)
    result = moved.new_zeros(ours.size, *moved.shape[1:])
    for piece, (other,) in _blocks(ours, [theirs]):
        left, right = support(piece, other)
        result[piece.index.reshape(-1)[left]] = moved[other.index.reshape(-1)[right]]
    return result.movedim(0, axis)
