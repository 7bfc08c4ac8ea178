"""Views that are not yet taken at their word: factors of an axis that is split only when someone needs it split.

Models take the pieces of a view apart again (`view(b, t, 3, h, d)` then `unbind(2)`). Splitting at once would tie q,
k and v to one inner space. So a view gives `Promise`s, and whoever cuts a promise cuts the undivided axis instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import TypeAlias

from fxmerge.coupling.axes import ONE, Axis, Coupler, leaf, product


class View:
    """An undivided axis seen as several factors (sizes major to minor)."""

    __slots__ = ("_parts", "base", "sizes")

    def __init__(self, base: Axis, sizes: Sequence[int]) -> None:
        self.base, self.sizes = base, tuple(sizes)
        self._parts: tuple[Axis, ...] | None = None

    def axes(self) -> list[Held]:
        """The factors, as promises."""
        whole = self.base.size
        return [ONE if n == 1 else self.base if n == whole else Promise(self, i) for i, n in enumerate(self.sizes)]

    def redeem(self, coupler: Coupler) -> tuple[Axis, ...]:
        """The factors as axes: the undivided axis is really split, once."""
        if self._parts is None:
            found, rest = [], self.base
            for i, _ in enumerate(self.sizes[:-1]):
                major, rest = coupler.split(rest, prod(self.sizes[i + 1 :]))
                found.append(major)
            self._parts = (*found, rest)
        return self._parts

    @property
    def parts(self) -> tuple[Axis, ...]:
        """The factors of a view that was redeemed."""
        assert self._parts is not None
        return self._parts

    @property
    def redeemed(self) -> bool:
        return self._parts is not None


class Promise:
    """One factor of a view."""

    __slots__ = ("index", "view")

    def __init__(self, view: View, index: int) -> None:
        self.view, self.index = view, index

    @property
    def size(self) -> int:
        return self.view.sizes[self.index]


Held: TypeAlias = Axis | Promise
"""An axis of a value as the analysis holds it."""


def redeem(axis: Held, coupler: Coupler) -> Axis:
    return axis.view.redeem(coupler)[axis.index] if isinstance(axis, Promise) else axis


def narrow(axes: Sequence[Held], dim: int, start: int, stop: int, coupler: Coupler) -> list[Held]:
    """The axes of a value of which only `start` to `stop` along `dim` is taken."""
    axis = axes[dim]
    result = list(axes)
    if start == 0 and stop == axis.size:
        return result
    if start == stop:
        result[dim] = leaf(0)
        return result
    if not isinstance(axis, Promise) or axis.view.redeemed:
        result[dim] = coupler.take(redeem(axis, coupler), start, stop)
        return result
    view, index = axis.view, axis.index
    minor = prod(view.sizes[index + 1 :])
    major, rest = coupler.split(view.base, axis.size * minor)
    piece = coupler.take(rest, start * minor, stop * minor)
    sizes = (*view.sizes[:index], stop - start, *view.sizes[index + 1 :])
    return _renew(result, view, View(product([major, piece]), sizes))


def _renew(axes: list[Held], old: View, new: View) -> list[Held]:
    factors = new.axes()
    return [factors[a.index] if isinstance(a, Promise) and a.view is old else a for a in axes]


def reshape(axes: Sequence[Held], sizes: Sequence[int], coupler: Coupler) -> list[Held]:
    """The axes of a value viewed at other sizes. A view that undoes another restores the undivided axis."""
    if 0 in sizes:
        return [leaf(size) for size in sizes]
    held = restore(axes, coupler)
    result: list[Held] = []
    wanted = list(sizes)
    while wanted:
        group: list[Axis] = []
        targets = [wanted.pop(0)]
        have, need = 1, targets[0]
        while have != need:
            if have < need:
                group.append(held.pop(0))
                have *= group[-1].size
            else:
                targets.append(wanted.pop(0))
                need *= targets[-1]
        result += View(product(group), targets).axes()
    return result


def restore(axes: Sequence[Held], coupler: Coupler) -> list[Axis]:
    """The axes without ones, and every run of promises that is a whole view replaced by the undivided axis."""
    axes = [axis for axis in axes if axis.size != 1]
    found: list[Axis] = []
    while axes:
        first = axes[0]
        if isinstance(first, Promise) and not first.view.redeemed:
            whole = [axis for axis in first.view.axes() if axis.size != 1]
            run = axes[: len(whole)]
            if len(run) == len(whole) and all(_same(a, b) for a, b in zip(run, whole, strict=True)):
                found.append(first.view.base)
                del axes[: len(whole)]
                continue
        found.append(redeem(axes.pop(0), coupler))
    return found


def _same(a: Held, b: Held) -> bool:
    return isinstance(a, Promise) and isinstance(b, Promise) and a.view is b.view and a.index == b.index
