"""Random elements of the groups that the spaces of a program tolerate, and their action on its tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fxmerge.coupling.axes import Axis, Class
from fxmerge.coupling.tolerance import Tolerances
from fxmerge.coupling.views import Held, Promise

Kind = Literal["permutation", "scale", "sign", "dense"]
KINDS: tuple[Kind, ...] = ("permutation", "scale", "sign", "dense")

SPREAD = 0.3
"""Standard deviation of the logarithm of a random scale."""


class Element:
    """One random element of the group of every space, and how each occurrence of a space is transformed by it.

    A space within another has an element of its own for every index of that one. `kinds` says which parts of the
    groups to draw from: order, positive scales, signs, dense maps.
    """

    def __init__(
        self,
        tolerances: Tolerances,
        within: Mapping[Class, Class],
        seed: int = 0,
        kinds: Sequence[Kind] = KINDS,
        groups: Mapping[Class, str] | None = None,
    ) -> None:
        self.tolerances, self.within, self.kinds = tolerances, within, frozenset(kinds)
        self.groups = tolerances.groups if groups is None else groups
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn: dict[tuple[object, ...], Tensor] = {}
        self.undoes = False

    def inverse(self) -> Element:
        """The element that undoes this one."""
        other = copy(self)
        other.undoes = not self.undoes
        return other

    def act(self, value: Tensor, axes: Sequence[Held]) -> Tensor | None:
        """A value transformed along its axes; None if one of them is a factor of a view that nobody needed split."""
        if any(isinstance(axis, Promise) and not axis.view.redeemed for axis in axes):
            return None
        plain = [axis.view.parts[axis.index] if isinstance(axis, Promise) else axis for axis in axes]
        return self._act(value, plain, {})

    def _act(self, value: Tensor, axes: list[Axis], place: dict[Class, int]) -> Tensor:
        for dim, axis in enumerate(axes):
            if axis.kind == "cat":
                parts = torch.split(value, [part.size for part in axis.parts], dim)
                return torch.cat(
                    [self._act(x, _at(axes, dim, [part]), place) for x, part in zip(parts, axis.parts, strict=True)],
                    dim,
                )
            if axis.kind == "prod" and axis.parts:
                sizes = [part.size for part in axis.parts]
                apart = self._act(torch.unflatten(value, dim, sizes), _at(axes, dim, list(axis.parts)), place)
                return apart.flatten(dim, dim + len(sizes) - 1)
        return self._act_plain(value, axes, place)

    def _act_plain(self, value: Tensor, axes: list[Axis], place: dict[Class, int]) -> Tensor:
        """Transform a value whose axes are all leaves (or of size one)."""
        leaves = {axis.cls: dim for dim, axis in enumerate(axes) if axis.size > 1}
        owners = [owner for cls in leaves if (owner := self.within.get(cls)) in leaves and owner not in place]
        if owners and owners[0] is not None:
            dim = leaves[owners[0]]
            if self.undoes:  # the owner's order first: its rows know their elements by the places they came from
                value = self._leaf(value, dim, axes[dim], place)
            rows = [
                self._act_plain(x, axes[:dim] + axes[dim + 1 :], {**place, owners[0]: i})
                for i, x in enumerate(value.unbind(dim))
            ]
            stacked = torch.stack(rows, dim)
            return stacked if self.undoes else self._leaf(stacked, dim, axes[dim], place)
        for dim, axis in enumerate(axes):
            if axis.size > 1:
                value = self._leaf(value, dim, axis, place)
        return value

    def _leaf(self, value: Tensor, dim: int, axis: Axis, place: Mapping[Class, int]) -> Tensor:
        cls = axis.cls
        group = self.groups.get(cls, "identity")
        if group in ("identity", "rotary"):
            return value
        owner = self.within.get(cls)
        index = place.get(owner, -1) if owner is not None else -1
        if (
            group in ("invertible", "orthogonal")
            and "dense" in self.kinds
            and (value.is_floating_point() or value.is_complex())
        ):
            matrix = self._dense(axis, index, group).to(value.dtype)
            matrix = torch.linalg.inv(matrix) if self.undoes else matrix
            return torch.movedim(torch.movedim(value, dim, -1) @ matrix.T, -1, dim)
        if "permutation" not in self.kinds:
            return self._diagonal(value, dim, axis, index)
        order = self._order(cls, index)
        if self.undoes:
            return self._diagonal(value.index_select(dim, order.argsort()), dim, axis, index)
        return self._diagonal(value, dim, axis, index).index_select(dim, order)

    # -- drawing -----------------------------------------------------------------------------------

    def _order(self, cls: Class, index: int) -> Tensor:
        """A random order that is not the one there is."""

        def draw() -> Tensor:
            order = torch.randperm(cls.size, generator=self.generator)
            return order if bool((order != torch.arange(cls.size)).any()) else order.roll(1)

        return self._draw(("order", cls, index), draw)

    def _dense(self, axis: Axis, index: int, group: str) -> Tensor:
        """T where the exponent is +1, the inverse transpose where it is -1."""
        cls = axis.cls

        def draw() -> Tensor:
            square = torch.randn(cls.size, cls.size, generator=self.generator, dtype=torch.float64)
            turn: Tensor = torch.linalg.qr(square)[0]
            scales = torch.randn(cls.size, generator=self.generator, dtype=torch.float64).mul(SPREAD).exp()
            return turn * scales if group == "invertible" else turn

        matrix = self._draw(("dense", cls, index), draw)
        if group == "orthogonal":
            return matrix
        exponents = self.tolerances.scale_of(axis).values()
        return matrix if all(e > 0 for e in exponents) else torch.linalg.inv(matrix).T

    def _diagonal(self, value: Tensor, dim: int, axis: Axis, index: int) -> Tensor:
        if not value.is_floating_point() and not value.is_complex():
            return value
        shape = [axis.size if d == dim else 1 for d in range(value.ndim)]
        if "scale" in self.kinds:
            for free, exponent in self.tolerances.scale_of(axis).items():
                logarithm = self._draw(("scale", axis.cls, free, index), lambda: self._normal(axis.size) * SPREAD)
                power = -float(exponent) if self.undoes else float(exponent)
                value = value * (logarithm * power).exp().reshape(shape)
        if "sign" in self.kinds:
            for free in self.tolerances.sign_of(axis):
                value = value * self._draw(
                    ("sign", axis.cls, free, index), lambda: self._normal(axis.size).sign()
                ).reshape(shape)
        return value

    def _normal(self, size: int) -> Tensor:
        return torch.randn(size, generator=self.generator, dtype=torch.float64)

    def _draw(self, key: tuple[object, ...], draw: object) -> Tensor:
        if key not in self.drawn:
            self.drawn[key] = draw()  # type: ignore[operator]
        return self.drawn[key]


def _at(axes: list[Axis], dim: int, parts: list[Axis]) -> list[Axis]:
    return [*axes[:dim], *parts, *axes[dim + 1 :]]


@dataclass(frozen=True)
class Deviation:
    """How far a value is from what was predicted, relative to its largest entry."""

    error: float

    @classmethod
    def between(cls, value: Tensor, expected: Tensor) -> Deviation:
        """Finite entries only: masks hold infinities, which must be in the same places."""
        a, b = value.to(torch.complex128), expected.to(torch.complex128)
        finite = torch.isfinite(a) & torch.isfinite(b)
        if not torch.equal(torch.isfinite(a), torch.isfinite(b)):
            return cls(float("inf"))
        if not bool(finite.any()):
            return cls(0.0)
        scale = float(b[finite].abs().max())
        return cls(float((a - b)[finite].abs().max()) / max(scale, 1e-300) if scale else float(a[finite].abs().max()))
