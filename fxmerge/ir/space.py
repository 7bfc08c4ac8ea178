"""What the analysis hands out: axes written in spaces, the spaces, and what stayed opaque."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from types import MappingProxyType
from typing import TypeAlias

import torch
from torch import Tensor, fx

TOLERANCES = ("identity", "rotary", "permutation", "signed_permutation", "orthogonal", "invertible")
"""What a space allows, from nothing to everything; `rotary` is no part of the chain: planes turn, none moves."""

MOVABLE = frozenset(("permutation", "signed_permutation", "orthogonal", "invertible"))


@dataclass(frozen=True, slots=True)
class Leaf:
    """One whole space. An empty id: this axis of an intermediate value is no product of spaces."""

    space: str
    size: int

    def __str__(self) -> str:
        return self.space or "?"


@dataclass(frozen=True)
class Prod:
    """A product of axes, major to minor."""

    children: tuple[AxisExpr, ...]

    @cached_property
    def size(self) -> int:
        return prod(child.size for child in self.children)

    def __str__(self) -> str:
        return "(" + " ".join(map(str, self.children)) + ")"


@dataclass(frozen=True)
class Cat:
    """A concatenation of axes, first to last."""

    children: tuple[AxisExpr, ...]

    @cached_property
    def size(self) -> int:
        return sum(child.size for child in self.children)

    def __str__(self) -> str:
        return "[" + " ".join(map(str, self.children)) + "]"


AxisExpr: TypeAlias = Leaf | Prod | Cat


def leaves(axis: AxisExpr) -> Iterator[Leaf]:
    """Every occurrence of a space in an axis, left to right."""
    if isinstance(axis, Leaf):
        yield axis
    else:
        for child in axis.children:
            yield from leaves(child)


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of an axis that is a plain product: `index` (shaped like the factors) holds its positions in the axis."""

    index: Tensor
    factors: tuple[Leaf, ...]


def pieces(axis: AxisExpr) -> tuple[Piece, ...]:
    """The axis with every concatenation distributed: products of spaces that partition it.

    `(h [q k v])` of sizes (4 [8 8 6]) gives three pieces of shapes (4, 8), (4, 8) and (4, 6).
    """
    return tuple(Piece(index, factors) for index, factors in _pieces(axis))


def _pieces(axis: AxisExpr) -> list[tuple[Tensor, tuple[Leaf, ...]]]:
    if isinstance(axis, Leaf):
        return [(torch.arange(axis.size), (axis,))]
    if isinstance(axis, Cat):
        found, start = [], 0
        for child in axis.children:
            found += [(index + start, factors) for index, factors in _pieces(child)]
            start += child.size
        return found
    found = [(torch.zeros((), dtype=torch.long), ())]
    for child in axis.children:
        found = [
            (major.reshape(*major.shape, *(1 for _ in minor.shape)) * child.size + minor, left + right)
            for major, left in found
            for minor, right in _pieces(child)
        ]
    return found


@dataclass(frozen=True)
class Use:
    """A parameter axis that carries a space, at the call that reads it (contracts it) or writes it (produces it)."""

    tensor: str
    axis: int
    node: fx.Node = field(compare=False, repr=False)


@dataclass(frozen=True)
class Space:
    """A class of coupled axes: its size, what it is for, and which change of basis leaves the outputs unchanged."""

    id: str
    size: int
    role: str
    tolerance: str
    within: str | None = None
    """The map of this space may differ for every index of that one."""
    readers: tuple[Use, ...] = ()
    writers: tuple[Use, ...] = ()
    others: tuple[Use, ...] = ()
    """Parameters that only scale or shift along the space."""
    scales: int = 0
    """Number of independent positive diagonal maps that leave the outputs unchanged."""
    signs: int = 0
    """Number of independent sign flips that leave the outputs unchanged."""
    reason: str = ""
    """Why it tolerates no permutation: operator and source line; empty if it does."""

    @property
    def movable(self) -> bool:
        return self.tolerance in MOVABLE


@dataclass(frozen=True)
class Opaque:
    """A parameter axis that an operator without a rule, or a call that its rule does not know, touches."""

    parameter: str
    axis: int
    operator: str
    at: str
    message: str
    """A rule to start from; what the rule said, where there is one."""
    reason: str = ""
    """Why the operator holds the axis still."""

    @property
    def note(self) -> str:
        at = f" (at {self.at})" if self.at and self.at not in self.reason else ""
        return f"{self.reason or self.operator}{at}: the axes that it touches stay as they are"


@dataclass(frozen=True)
class Spaces:
    """Every axis of a program in terms of its spaces."""

    axes: Mapping[fx.Node, tuple[AxisExpr, ...]]
    """Per tensor-valued node; a node whose value is a tuple has a tuple of those."""
    tensors: Mapping[str, tuple[AxisExpr, ...]]
    """Per tensor name: parameters, running statistics and constants."""
    spaces: Mapping[str, Space]
    opaque: tuple[Opaque, ...]
    transformed: frozenset[str] = frozenset()
    """The tensors that change with their spaces: the parameters, and running statistics."""
    unused: frozenset[str] = frozenset()
    """Those of them on which no output depends: everything may be done to them."""
    steady: frozenset[str] = frozenset()
    """Those that keep their signs where a space that they carry changes signs (the scales of a norm)."""

    def __post_init__(self) -> None:
        for name in ("axes", "tensors", "spaces"):
            object.__setattr__(self, name, MappingProxyType(dict(getattr(self, name))))
