"""Solves what the calls of a program demand of each space: which scales, signs and dense maps leave it unchanged.

Every occurrence of a space (an axis, or a factor or segment of one) has an unknown exponent: how the value scales there
when the space is scaled. Each call gives linear equations, over the rationals for positive scales and over GF(2) for
signs; the null space is the group of diagonal maps. A space that only linear operators touch, with a solution in which
every exponent is +1 or -1, is invertible: T goes where it is +1, the inverse transpose of T where it is -1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cached_property

from fxmerge.coupling.axes import Axis, Class, factors, segments
from fxmerge.coupling.exponents import ONE, Row, System, pivots
from fxmerge.coupling.inference import Inference, Lawful
from fxmerge.coupling.law import RESULT, Cap, equations


def occurrences(axis: Axis) -> Iterator[Axis]:
    """The leaves of an axis, left to right; those of size one aside."""
    if axis.size <= 1:
        return
    if axis.kind == "leaf":
        yield axis
    else:
        for part in axis.parts:
            yield from occurrences(part)


def aligned(axes: Sequence[Axis]) -> Iterator[tuple[Axis, ...]]:
    """The leaves of coupled axes side by side. Raises ValueError if they have no common structure."""
    if axes[0].size <= 1:
        return
    if all(axis.kind == "leaf" for axis in axes):
        yield tuple(axes)
        return
    parts = [segments(axis) for axis in axes]
    if all(len(part) == 1 for part in parts):
        parts = [[f for f in factors(axis) if f.size > 1] for axis in axes]
    for side_by_side in zip(*parts, strict=True):
        yield from aligned(side_by_side)


class Tolerances:
    """What every leaf class of an inference tolerates."""

    def __init__(self, inference: Inference) -> None:
        self.inference = inference
        self.number: dict[Axis, int] = {}
        self._scale: dict[Axis, Row] = {}
        self._sign: dict[Axis, Row] = {}
        self.scale, self.sign = System(signs=False), System(signs=True)
        self.caps: dict[Class, Cap] = {}
        self.reasons: dict[Class, str] = {}
        for law in inference.lawful:
            self._lawful(law)
        for a, b in inference.equal:
            for pair in aligned((a, b)):
                self._both([(self._index(pair[0]), ONE), (self._index(pair[1]), -ONE)])
        for axis in inference.stiff:
            self._stiffen(axis)
        for pin in inference.pins:
            for leaf in occurrences(pin.axis):
                self.reasons.setdefault(leaf.cls, pin.reason)
                self._stiffen(leaf)
        self.scale.solve()
        self.sign.solve()

    def _index(self, leaf: Axis) -> int:
        return self.number.setdefault(leaf, len(self.number))

    def _both(self, form: list[tuple[int, Fraction]]) -> None:
        self.scale.vanish(form)
        self.sign.vanish(form)

    def _stiffen(self, axis: Axis) -> None:
        for leaf in occurrences(axis):
            self.caps[leaf.cls] = Cap.MONOMIAL
            self._both([(self._index(leaf), ONE)])

    def _lawful(self, law: Lawful) -> None:
        form = law.signature
        for label, slots in law.labels.items():
            more = [slot for slot in slots if slot.startswith(RESULT) and slot != RESULT]
            for slot in more:  # the law speaks of the first result; the others tolerate permutations
                self._stiffen(slots[slot])
            names = [slot for slot in slots if slot not in more]
            if not names:
                continue
            carriers = frozenset(names) - {RESULT}
            demands = equations(form.law, label, carriers, law.absent, law.zero, RESULT in slots)
            try:
                rows = list(aligned([slots[name] for name in names]))
            except ValueError:
                for name in names:
                    self.inference.pin(slots[name], f"axes that do not fit, at {law.node.name}")
                continue
            for leaves in rows:
                place = {name: self._index(leaf) for name, leaf in zip(names, leaves, strict=True)}
                cls = leaves[0].cls
                self.caps[cls] = min(self.caps.get(cls, Cap.INVERTIBLE), demands.cap)
                for equation in demands.scale:
                    self.scale.vanish([(place[slot], c) for slot, c in equation.items()])
                for equation in demands.sign:
                    self.sign.vanish([(place[slot], c) for slot, c in equation.items()])

    # -- answers -----------------------------------------------------------------------------------

    @cached_property
    def carried(self) -> Mapping[Class, tuple[Axis, ...]]:
        """Occurrences of each leaf class in the tensors that are transformed."""
        found: dict[Class, list[Axis]] = {}
        for axes in self.tensors():
            for axis in axes:
                for leaf in occurrences(axis):
                    found.setdefault(leaf.cls, []).append(leaf)
        return {cls: tuple(leaves) for cls, leaves in found.items()}

    def tensors(self) -> Iterator[tuple[Axis, ...]]:
        """The axes of every tensor that is transformed."""
        inference = self.inference
        return (axes for name, axes in inference.tensors.items() if name in inference.transformed)

    @cached_property
    def groups(self) -> Mapping[Class, str]:
        """The group of every leaf class that a parameter carries."""
        return {cls: self._group(cls, leaves, self.wide.get(cls, [])) for cls, leaves in self.carried.items()}

    @cached_property
    def wide(self) -> Mapping[Class, Sequence[Axis]]:
        """Occurrences of each leaf class in tensors with several axes."""
        wide: dict[Class, list[Axis]] = {}
        for axes in self.tensors():
            if sum(axis.size > 1 for axis in axes) > 1:
                for axis in axes:
                    for leaf in occurrences(axis):
                        wide.setdefault(leaf.cls, []).append(leaf)
        return wide

    def steady(self) -> Iterator[str]:
        """The tensors with one axis that keep their signs when all matrices along a space of theirs change sign."""
        for name in self.inference.transformed & self.inference.tensors.keys():
            axes = [axis for axis in self.inference.tensors[name] if axis.size > 1]
            found = [leaf for axis in axes for leaf in occurrences(axis)] if len(axes) == 1 else []
            matrices = [self.wide.get(leaf.cls, ()) for leaf in found]
            if any(
                self._flips(m) and not self._flips([*m, leaf]) for leaf, m in zip(found, matrices, strict=True) if m
            ):
                yield name

    def _group(self, cls: Class, carried: Sequence[Axis], matrices: Sequence[Axis]) -> str:
        if cls in self.reasons:
            return "identity"
        cap = self.caps.get(cls, Cap.INVERTIBLE)
        if cap is Cap.INVERTIBLE and self._unit(carried):
            return "invertible"
        if cap >= Cap.ORTHOGONAL and self._flips(carried):
            return "orthogonal"
        if matrices and self._flips(matrices):
            return "signed_permutation"
        return "permutation"

    def _unit(self, carried: Sequence[Axis]) -> bool:
        """Whether every exponent can be +1 or -1: no equation has more than two terms, so one per component will do."""
        rows = [self.scale_of(leaf) for leaf in carried]
        return all(len(row) == 1 and abs(next(iter(row.values()))) == 1 for row in rows)

    def _flips(self, carried: Sequence[Axis]) -> bool:
        """Whether all of these occurrences can change sign at once."""
        rows = ({**self.sign_of(leaf), _CONSTANT: ONE} for leaf in carried)
        return _CONSTANT not in pivots(rows, signs=True)

    def scale_of(self, leaf: Axis) -> Row:
        """The exponent of an occurrence under positive scales, as a combination of free ones."""
        if leaf not in self._scale:
            self._scale[leaf] = self.scale.express(self._index(leaf))
        return self._scale[leaf]

    def sign_of(self, leaf: Axis) -> Row:
        """The exponent of an occurrence under signs (0 or 1), as a combination of free ones."""
        if leaf not in self._sign:
            self._sign[leaf] = self.sign.express(self._index(leaf))
        return self._sign[leaf]

    def rank(self, cls: Class, signs: bool) -> int:
        """Number of independent diagonal maps of a class that change any parameter."""
        of = self.sign_of if signs else self.scale_of
        return len(pivots((of(leaf) for leaf in self.carried.get(cls, ())), signs))


_CONSTANT = -1
"""Stands for the one in an equation "exponent = 1". Eliminated last: it is the smallest variable."""
