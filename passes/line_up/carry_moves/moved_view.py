"""A value as a moved view of another: which part of which axis stands where.

An `Atom` is a factor of an axis of the source. A `Form` says, for every axis of the source and for every axis of the
value, of which atoms it consists, major to minor: all there is to say about any chain of reshapes and permutes.

    permute(reshape(x, [b, t, 3, 4]), [0, 2, 1, 3])     axes (b) (t) (h d)     out (b) (h) (t) (d)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TypeAlias

from torch import fx

Size: TypeAlias = tuple[int, int]
"""How long an axis is at two choices of the dynamic sizes; a fixed size is the same number twice."""

Group: TypeAlias = "tuple[Atom, ...]"
"""The atoms of one axis, major to minor; none for an axis of size one."""

ONE: Size = (1, 1)


@dataclass(frozen=True, eq=False)
class Atom:
    """A factor of an axis; another atom of the same size is another factor."""

    size: Size


@dataclass(frozen=True)
class Form:
    """What a value is of `source`: the atoms of the source's axes, and those of the value's."""

    source: fx.Node
    axes: tuple[Group, ...]
    out: tuple[Group, ...]

    @property
    def shape(self) -> tuple[Size, ...]:
        return tuple(size(group) for group in self.out)

    @property
    def is_source(self) -> bool:
        """Whether the value is the source itself."""
        return self.axes == self.out

    @property
    def rank(self) -> int:
        return len(self.out)

    def atoms(self) -> list[Atom]:
        """All atoms in the order of the source."""
        return [atom for group in self.axes for atom in group]

    def still(self, count: int) -> bool:
        """Whether the last axes of the value are those of the source."""
        if count > min(len(self.axes), len(self.out)):
            return False
        return self.out[len(self.out) - count :] == self.axes[len(self.axes) - count :]

    def in_order(self) -> list[int] | None:
        """The axes in the order in which they stand in the source, the last one last; None if they do already."""
        place = {atom: number for number, atom in enumerate(self.atoms())}
        lead = sorted(range(self.rank - 1), key=lambda i: place[self.out[i][0]] if self.out[i] else -1)
        return None if lead == list(range(self.rank - 1)) else [*lead, self.rank - 1]

    def without_leading_ones(self) -> Form:
        """The value without its first axes of size one; the last axis stays."""
        first = next((axis for axis, group in enumerate(self.out) if group), self.rank)
        return self.regroup(self.out[min(first, max(self.rank - 1, 0)) :])

    def permute(self, order: Sequence[int]) -> Form:
        return replace(self, out=tuple(self.out[axis] for axis in order))

    def regroup(self, out: Sequence[Group]) -> Form:
        """The same source, and the same atoms, or some of them, as other axes."""
        return replace(self, out=tuple(out))

    def refined(self, parts: Mapping[Atom, Group]) -> Form:
        """Atoms replaced by the factors they consist of."""
        return replace(self, axes=refine(self.axes, parts), out=refine(self.out, parts))

    def reshape(self, sizes: Sequence[Size]) -> Form | None:
        """The value at other sizes; None where no factors of the axes fit."""
        todo = [atom for group in self.out for atom in group]
        parts: dict[Atom, Group] = {}
        out: list[Group] = []
        for wanted in sizes:
            group: Group = ()
            while size(group) != wanted:
                missing = divided(wanted, size(group))
                if missing is None or not todo:
                    return None
                atom = todo.pop(0)
                if divided(missing, atom.size) is None:
                    rest = divided(atom.size, missing)
                    if rest is None:
                        return None
                    halves = Atom(missing), Atom(rest)
                    parts = {known: _replaced(inner, atom, halves) for known, inner in parts.items()}
                    if not any(halves[0] in inner for inner in parts.values()):
                        parts[atom] = halves
                    atom = halves[0]
                    todo.insert(0, halves[1])
                group = (*group, atom)
            out.append(group)
        return None if todo else self.refined(parts).regroup(out)

    def alike(self, other: Form) -> bool:
        """Whether the other is moved in the same way, from a source of the same shape."""
        ours, theirs = self.coalesced(), other.coalesced()
        if [size(group) for group in ours.axes] != [size(group) for group in theirs.axes]:
            return False
        return ours._numbered() == theirs._numbered()

    def _numbered(self) -> list[list[tuple[int, Size]]]:
        """The value's axes with each atom by its place in the source and its size."""
        place = {atom: number for number, atom in enumerate(self.atoms())}
        return [[(place[atom], atom.size) for atom in group] for group in self.out]

    def coalesced(self) -> Form:
        """The same with atoms joined that follow one another in an axis of the source and in one of the value."""
        after = {a: b for group in self.axes for a, b in pairwise(group)}
        parts: dict[Atom, Group] = {}
        for group in self.out:
            run: list[Atom] = []
            for atom in (*group, None):
                if run and (atom is None or after.get(run[-1]) is not atom):
                    parts.update({run[0]: (Atom(size(run)),), **dict.fromkeys(run[1:], ())} if len(run) > 1 else {})
                    run = []
                if atom is not None:
                    run.append(atom)
        return self.refined(parts)


def size(group: Sequence[Atom]) -> Size:
    """How long an axis of these atoms is."""
    a, b = ONE
    for atom in group:
        a, b = a * atom.size[0], b * atom.size[1]
    return a, b


def divided(whole: Size, part: Size) -> Size | None:
    """The size that `part` must be multiplied by to give `whole`, if there is one."""
    if 0 in part:
        return None
    (a, rest), (b, more) = divmod(whole[0], part[0]), divmod(whole[1], part[1])
    return None if rest or more else (a, b)


def refine(groups: Sequence[Group], parts: Mapping[Atom, Group]) -> tuple[Group, ...]:
    """Groups with atoms replaced by the factors they consist of."""
    return tuple(tuple(part for atom in group for part in parts.get(atom, (atom,))) for group in groups)


def _replaced(group: Group, atom: Atom, parts: Group) -> Group:
    return tuple(each for old in group for each in (parts if old is atom else (old,)))
