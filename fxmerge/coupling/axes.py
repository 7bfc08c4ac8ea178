"""Axes while they are being coupled: union-find over products and concatenations of classes.

A `Class` is an equivalence class of axes; an `Axis` is one occurrence of a class (an axis of one value). A class that
is split or cut becomes a product or a concatenation of smaller classes, and every occurrence of it expands when it
is next read. So whoever holds an `Axis` holds its present structure, however much was refined since.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Literal

Kind = Literal["leaf", "prod", "cat"]


class Class:
    """A union-find node: a leaf, or a product (major to minor) or concatenation (in order) of other classes."""

    __slots__ = ("kind", "link", "parts", "size")

    def __init__(self, size: int, kind: Kind = "leaf", parts: Sequence[Class] = ()) -> None:
        self.size = size
        self.kind: Kind = kind
        self.parts = tuple(parts)
        self.link: Class | None = None

    def find(self) -> Class:
        """The class this one was linked to, in the end."""
        root = self
        while root.link is not None:
            root = root.link
        node = self
        while node.link is not None:
            node.link, node = root, node.link
        return root


class Axis:
    """One occurrence of a class: an axis of one value, or a factor or segment of it."""

    __slots__ = ("_kind", "_of", "_parts", "size")

    def __init__(self, of: Class | None, kind: Kind = "leaf", parts: Sequence[Axis] = (), size: int = 0) -> None:
        self._of, self._kind, self._parts = of, kind, tuple(parts)
        self.size = of.size if of is not None else size

    @property
    def kind(self) -> Kind:
        if self._kind == "leaf" and self._of is not None:
            root = self._of = self._of.find()
            if root.kind != "leaf":
                self._kind, self._parts = root.kind, tuple(Axis(part) for part in root.parts)
        return self._kind

    @property
    def parts(self) -> tuple[Axis, ...]:
        return self._parts if self.kind != "leaf" else ()

    @property
    def cls(self) -> Class:
        """Its class; a composite that was put together from occurrences gets one when it is first asked for."""
        if self._of is None:
            self._of = Class(self.size, self._kind, [part.cls for part in self._parts])
        self._of = self._of.find()
        return self._of


ONE = Axis(None, "prod", (), 1)
"""The axis of size one: a product of nothing."""


def leaf(size: int) -> Axis:
    """A fresh axis, coupled with nothing."""
    return ONE if size == 1 else Axis(Class(size))


def product(parts: Sequence[Axis]) -> Axis:
    """The product of axes, major to minor; ones vanish."""
    parts = [part for part in parts if part.size != 1]
    if len(parts) == 1:
        return parts[0]
    return Axis(None, "prod", parts, prod(part.size for part in parts)) if parts else ONE


def concat(parts: Sequence[Axis]) -> Axis:
    """The concatenation of axes; empty ones vanish."""
    parts = [part for part in parts if part.size != 0]
    return parts[0] if len(parts) == 1 else Axis(None, "cat", parts, sum(part.size for part in parts))


def twin(axis: Axis) -> Axis:
    """Another occurrence of the same class: coupled with it, but free to scale differently."""
    return axis if axis.size == 1 else Axis(axis.cls)


def factors(axis: Axis) -> list[Axis]:
    """An axis as a flat product, major to minor; none of them is a product."""
    if axis.kind != "prod":
        return [axis]
    return [factor for part in axis.parts for factor in factors(part)]


def segments(axis: Axis) -> list[Axis]:
    """An axis as a flat concatenation; a product whose major factor is a concatenation counts as one."""
    if axis.kind == "cat":
        return [segment for part in axis.parts for segment in segments(part)]
    flat = factors(axis)
    if len(flat) > 1 and flat[0].kind == "cat":
        return [segment for part in segments(flat[0]) for segment in segments(product([part, *flat[1:]]))]
    return [axis]


class Coupler:
    """Couples, splits and cuts axes. `equate` hears of axes that must also scale alike, `pin` of misfits."""

    def __init__(self, equate: Callable[[Axis, Axis], None], pin: Callable[[Axis, str], None]) -> None:
        self.equate, self.pin = equate, pin

    def unify(self, a: Axis, b: Axis) -> None:
        """Make two axes of one size the same axis."""
        assert a.size == b.size, f"axes of sizes {a.size} and {b.size} cannot be one"
        if a is b or a.size <= 1:
            return
        if a.kind == "leaf" or b.kind == "leaf":
            one, other = (a, b) if a.kind == "leaf" else (b, a)
            if one.cls is not other.cls:
                one.cls.link = other.cls
            return
        left, right = segments(a), segments(b)
        if len(left) > 1 or len(right) > 1:
            self._unify_segments(a, b)
        else:
            self._unify_factors(a, b)

    def _unify_factors(self, a: Axis, b: Axis) -> None:
        left, right = factors(a), factors(b)
        while left and right:
            x, y = left.pop(0), right.pop(0)
            if x.size == y.size:
                self.unify(x, y)
            elif x.size % y.size == 0:
                major, minor = self.split(x, x.size // y.size)
                self.unify(major, y)
                left.insert(0, minor)
            elif y.size % x.size == 0:
                major, minor = self.split(y, y.size // x.size)
                self.unify(major, x)
                right.insert(0, minor)
            else:
                for axis in (x, y, *left, *right):
                    self.pin(axis, "factors of sizes that do not divide each other")
                return

    def _unify_segments(self, a: Axis, b: Axis) -> None:
        while True:
            left, right = segments(a), segments(b)
            ours, theirs = _borders(left), _borders(right)
            if ours == theirs:
                break
            for border in theirs - ours:
                a = concat(self.cut(a, border))
            for border in ours - theirs:
                b = concat(self.cut(b, border))
        for x, y in zip(left, right, strict=True):
            self.unify(x, y)

    def split(self, axis: Axis, minor: int) -> tuple[Axis, Axis]:
        """Write an axis as a product of two, the second of size `minor`."""
        assert axis.size % minor == 0, f"an axis of size {axis.size} has no factor {minor}"
        if minor == 1:
            return axis, ONE
        if minor == axis.size:
            return ONE, axis
        if axis.kind == "leaf":
            cls = axis.cls
            cls.kind, cls.parts = "prod", (Class(cls.size // minor), Class(minor))
        return self._split_segments(axis, minor) if len(segments(axis)) > 1 else self._split_factors(axis, minor)

    def _split_factors(self, axis: Axis, minor: int) -> tuple[Axis, Axis]:
        left, need = factors(axis), minor
        right: list[Axis] = []
        while need > 1:
            last = left.pop()
            if need % last.size == 0:
                right.insert(0, last)
                need //= last.size
            elif last.size % need == 0:
                major, low = self.split(last, need)
                left.append(major)
                right.insert(0, low)
                need = 1
            else:
                return self._misfit(axis, minor)
        return product(left), product(right)

    def _misfit(self, axis: Axis, minor: int) -> tuple[Axis, Axis]:
        """Factors that share nothing with an axis that cannot be split by `minor`; all of it stays as it is."""
        major, low = leaf(axis.size // minor), leaf(minor)
        for each in (axis, major, low):
            self.pin(each, f"a view by {minor} across its factors")
        return major, low

    def _split_segments(self, axis: Axis, minor: int) -> tuple[Axis, Axis]:
        """Split a concatenation: where a border falls inside a group of `minor`, the group is made of two segments.

        A worked example, queries (48), a key and a value (6 each) fused in one axis that a view reads as 5 × 12. The
        borders are 48 and 54; 54 is no multiple of 12, so key and value together are one group, and what a group is
        made of, `[6 6]`, is the same for all five: the queries are four times `[6 6]` from now on.

        >>> coupler = Coupler(equate=lambda a, b: None, pin=lambda axis, reason: None)
        >>> queries, key, value = leaf(48), leaf(6), leaf(6)
        >>> groups, inner = coupler.split(concat([queries, key, value]), 12)
        >>> [part.size for part in segments(groups)], [part.size for part in segments(inner)]
        ([4, 1], [6, 6])
        >>> [part.size for part in factors(queries)], segments(factors(queries)[1])[0].cls is key.cls
        ([4, 12], True)
        """
        for border in sorted(_borders(segments(axis))):
            if border % minor:
                low = border - border % minor
                for position in (low, low + minor):
                    if 0 < position < axis.size:
                        axis = concat(self.cut(axis, position))
        majors: list[Axis] = []
        minors: list[Axis] = []
        run: list[Axis] = []
        for segment in segments(axis):
            run.append(segment)
            if sum(part.size for part in run) % minor == 0:
                upper, lower = self.split(concat(run), minor)
                majors.append(upper)
                minors.append(lower)
                run = []
        for other in minors[1:]:
            self.unify(minors[0], other)
            self.equate(minors[0], other)
        return concat(majors), minors[0]

    def cut(self, axis: Axis, position: int) -> tuple[Axis, Axis]:
        """Write an axis as the concatenation of what is before a position and what is from it on."""
        assert 0 < position < axis.size, f"an axis of size {axis.size} cannot be cut at {position}"
        if axis.kind == "leaf":
            cls = axis.cls
            sizes = (position, axis.size - position)
            cls.kind, cls.parts = "cat", tuple(ONE.cls if size == 1 else Class(size) for size in sizes)
        if axis.kind == "prod":
            return self._cut_product(axis, position)
        before: list[Axis] = []
        after = list(axis.parts)
        start = 0
        while after and start + after[0].size <= position:
            start += after[0].size
            before.append(after.pop(0))
        if start < position:
            left, right = self.cut(after[0], position - start)
            before.append(left)
            after[0] = right
        return concat(before), concat(after)

    def _cut_product(self, axis: Axis, position: int) -> tuple[Axis, Axis]:
        major, *rest = factors(axis)
        minor = product(rest)
        row, inside = divmod(position, minor.size)
        if inside == 0:
            left, right = self.cut(major, row)
            return product([left, minor]), product([right, minor])
        low, high = self.cut(minor, inside)
        lows, highs = [low], [high]
        if row > 0:
            before, major = self.cut(major, row)
            lows.insert(0, product([before, minor]))
        if major.size > 1:
            highs.append(product([self.cut(major, 1)[1], minor]))
        return concat(lows), concat(highs)

    def take(self, axis: Axis, start: int, stop: int) -> Axis:
        """The part of an axis from `start` to `stop`."""
        if stop < axis.size:
            axis = self.cut(axis, stop)[0]
        return self.cut(axis, start)[1] if start > 0 else axis


def _borders(parts: Sequence[Axis]) -> set[int]:
    found, position = set(), 0
    for part in parts[:-1]:
        position += part.size
        found.add(position)
    return found
