"""What a rule for an operator that only moves axes can do with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, fx

from fxmerge.coupling import views
from fxmerge.coupling.axes import Axis, Coupler, concat, leaf, product
from fxmerge.coupling.call import Call, RuleRefusal
from fxmerge.coupling.views import Held


class Ledger(Protocol):
    """Where a rule's statements about axes are written down: the analysis that asks it."""

    @property
    def coupler(self) -> Coupler: ...

    def held(self, node: fx.Node) -> tuple[Held, ...]:
        """The axes of a tensor value, promises included."""

    def number(self, node: fx.Node) -> Tensor | None:
        """The numbers of a constant; None for any other value."""

    def equate(self, a: Axis, b: Axis) -> None:
        """Two coupled axes scale alike."""

    def rigid(self, axis: Axis) -> None:
        """An axis tolerates no scale and no mixing."""

    def pin(self, axis: Axis, reason: str) -> None:
        """An axis tolerates nothing."""

    def follow(self, node: fx.Node, law: str, labels: Mapping[str, Mapping[str, Axis]]) -> None:
        """A call follows a law along the coupled axes of each label."""


@dataclass(frozen=True)
class Move(Call):
    """A call whose operands' axes can be taken, cut, split, joined and coupled.

    Whatever a method returns can stand in the result. An axis that is handed through keeps its identity: it is coupled
    with nothing and tolerates what it tolerated.
    """

    ledger: Ledger

    def held(self, operand: str | fx.Node) -> list[Held]:
        """The axes of an operand as they are: factors of a view stay promises."""
        return list(self.ledger.held(self._node(operand)))

    def axes(self, operand: str | fx.Node) -> list[Axis]:
        """The axes of an operand; views are taken at their word."""
        return [self.plain(axis) for axis in self.held(operand)]

    def _node(self, operand: str | fx.Node) -> fx.Node:
        node = dict(self.operands)[operand] if isinstance(operand, str) else operand
        if node is None:
            raise RuleRefusal(f"{operand} was not given")
        return node

    def plain(self, axis: Held) -> Axis:
        return views.redeem(axis, self.ledger.coupler)

    def narrow(self, axes: Sequence[Held], dim: int, start: int, stop: int) -> list[Held]:
        """The axes of a value of which only `start` to `stop` along `dim` is kept."""
        return views.narrow(axes, dim, start, stop, self.ledger.coupler)

    def reshape(self, axes: Sequence[Held], sizes: Sequence[int]) -> list[Held]:
        """The axes of a value viewed at other sizes."""
        return views.reshape(axes, sizes, self.ledger.coupler)

    def split(self, axis: Held, minor: int) -> tuple[Axis, Axis]:
        """An axis as a product of two, the second of size `minor`."""
        return self.ledger.coupler.split(self.plain(axis), minor)

    def same(self, axes: Sequence[Held]) -> Axis:
        """Couple axes that also scale alike (as the operands of an addition do); ones among them broadcast."""
        plain = [self.plain(axis) for axis in axes]
        full = [axis for axis in plain if axis.size != 1] or plain[:1]
        for other in full[1:]:
            self.ledger.coupler.unify(full[0], other)
            self.ledger.equate(full[0], other)
        return full[0]

    def couple(self, a: Held, b: Held) -> None:
        """Couple two axes along which nothing but a permutation is tolerated."""
        self.ledger.coupler.unify(self.plain(a), self.plain(b))
        self.rigid(a)
        self.rigid(b)

    def pair(self, value: Held, gate: Held) -> None:
        """Couple the axes of two factors of a product of which only the first may scale."""
        self.ledger.coupler.unify(self.plain(value), self.plain(gate))
        self.rigid(gate)

    def follow(self, law: str, labels: Mapping[str, Mapping[str, Held]]) -> None:
        """Couple the axes of each label, and let them scale, flip and mix as a law says and no more.

        They are named as the law names its operands, "->" names the result's. A law may speak of values that the
        operator keeps to itself, if axes are given for them.
        """
        plain = {label: {name: self.plain(axis) for name, axis in slots.items()} for label, slots in labels.items()}
        for slots in plain.values():
            first, *others = slots.values()
            for other in others:
                self.ledger.coupler.unify(first, other)
        self.ledger.follow(self.node, law, plain)

    def fresh(self, size: int) -> Axis:
        """An axis along which the result is constant: any permutation, no scale."""
        axis = leaf(size)
        self.ledger.rigid(axis)
        return axis

    def blank(self, size: int) -> Axis:
        """An axis along which the result is zero: anything goes."""
        return leaf(size)

    def own(self, size: int) -> Axis:
        """An axis of its own that tolerates nothing."""
        return self.pin(leaf(size))

    def pin(self, axis: Held) -> Axis:
        """Let an axis tolerate nothing, because of this call."""
        plain = self.plain(axis)
        self.ledger.pin(plain, str(self))
        return plain

    def rigid(self, axis: Held) -> Axis:
        """Let an axis tolerate no more than permutations."""
        plain = self.plain(axis)
        self.ledger.rigid(plain)
        return plain

    def product(self, axes: Sequence[Held]) -> Axis:
        return product([self.plain(axis) for axis in axes])

    def concat(self, axes: Sequence[Held]) -> Axis:
        return concat([self.plain(axis) for axis in axes])

    def value(self, operand: str | fx.Node) -> Tensor | None:
        """The numbers of a constant operand; None if it is no constant or has no weights to read."""
        return self.ledger.number(self._node(operand))
