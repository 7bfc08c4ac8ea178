"""What an operator is: the one place that every analysis and rewriting asks.

Everything follows from the operator's coupling rule, and from torch's own tags. What a rule cannot show, it says
(`exact`, `commutes`). So an operator that an extension adds with one rule is known everywhere.

    Operators(rules).moved(node)       the call holds the numbers of one operand, in other places perhaps
    Operators(rules).pointwise(node)   an entry of the result depends on the entries at its place alone
    Operators(rules).joined(node)      operands that the call only adds to others, or puts beside them
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fxmerge.coupling import Call, Rule, RuleSet, Signature, signature
from fxmerge.coupling.axes import Axis, Class, Coupler, factors, segments
from fxmerge.coupling.factors import Factor, factor_in, scales_with
from fxmerge.coupling.law import Apply, Expr, Operand, Sum, added_in, names, neutral_in, normed_in, parse
from fxmerge.coupling.move import Move
from fxmerge.coupling.signature import labels_of
from fxmerge.coupling.views import Held, restore
from passes.rules import BUILTIN

Term: TypeAlias = "tuple[str, ...] | None"


@dataclass(frozen=True)
class Moved:
    """A call whose result holds the numbers of `source` and no others."""

    source: fx.Node
    by: tuple[fx.Node, ...] = ()
    """Whole numbers that choose them (rows of a table, say)."""
    turned: tuple[int, ...] | None = None
    """For each axis of the result the axis of the source that it is, where nothing else happens."""
    reshaped: bool = False
    """Whether the numbers stay in their order, under other sizes."""
    cast: bool = False
    """Whether they change their type, or their device."""
    places: tuple[int | None, ...] = field(default=(), compare=False)
    """For each axis of the result the axis of the source that it is, or is the start of."""

    @property
    def still(self) -> bool:
        """Whether every number stays in its place."""
        return self.turned is not None and list(self.turned) == sorted(self.turned)


@dataclass(frozen=True)
class Norm:
    """A call that norms `source` along `axes`, and at most scales and shifts each entry of what it has then."""

    source: fx.Node
    axes: tuple[int, ...]
    centred: bool
    """Whether it takes the mean away first."""


@dataclass(frozen=True)
class Operators:
    """Facts of the operators that a set of rules knows, one call at a time."""

    rules: RuleSet = BUILTIN

    def moved(self, node: fx.Node) -> Moved | None:
        """How a call moves the numbers of one operand; None if it does anything else with them."""
        if node.target is operator.getitem:
            source = node.args[0]
            return Moved(source) if isinstance(source, fx.Node) else None
        rule = self._rule(node)
        if rule is None or not rule.keeps_numbers or is_random(node):
            return None
        if rule.moves is None:
            read = [operand for _, operand in Call.of(node).operands if operand is not None]
            return _of_one(node, read)
        sketch = _sketch(node, rule)
        return None if sketch is None else _of_one(node, list(sketch.read), sketch)

    def keeps(self, node: fx.Node) -> bool:
        """Whether every number of the result is a number of an operand, be they moved or put side by side."""
        moved, rule = self.moved(node), self._rule(node)
        if moved is not None:
            return not moved.cast
        return rule is not None and rule.keeps_numbers and bool(self.joined(node))

    def pointwise(self, node: fx.Node) -> bool:
        """Whether every entry of the result depends on its operands' entries at that place alone."""
        if torch.Tag.pointwise in getattr(node.target, "tags", ()):
            return True
        rule = self._rule(node)
        if rule is None or rule.moves is not None:
            moved = None if rule is None else self.moved(node)
            return moved is not None and moved.still
        found = signature(self.rules, node)
        return found is not None and found.entrywise

    def joined(self, node: fx.Node) -> frozenset[fx.Node]:
        """Operands that meet others in one space and nothing more: they are added, put beside them, or chosen from."""
        rule = self._rule(node)
        if rule is None:
            return frozenset()
        if rule.moves is not None:
            sketch = _sketch(node, rule)
            values = [n for n in sketch.read if n.meta["val"].is_floating_point()] if sketch is not None else []
            return frozenset(values) if len(values) > 1 else frozenset()
        return self.added(node)

    def added(self, node: fx.Node) -> frozenset[fx.Node]:
        """Operands that the call adds to others, or chooses from entry by entry."""
        operands = {name: operand for name, operand in Call.of(node).operands if operand is not None}
        found = signature(self.rules, node)
        names = added_in(parse(found.law)) if found is not None and found.law else frozenset()
        return frozenset(operands[name] for name in names if name in operands)

    def neutral(self, node: fx.Node) -> dict[str, float]:
        """Operands that a call may be given or not, by name, with the number that changes nothing if it holds that."""
        _, law = self._lawful(node)
        schema = getattr(node.target, "_schema", None)
        if law is None or schema is None:
            return {}
        optional = {each.name for each in schema.arguments if str(each.type) == "Optional[Tensor]"}
        return {name: number for name, number in neutral_in(law).items() if name in optional}

    def neutral_shape(self, node: fx.Node, like: fx.Node, name: str) -> tuple[int, ...] | None:
        """The shape that an operand of a call would have, as the call `like` it has one; None where that is open."""
        own, other = signature(self.rules, node), signature(self.rules, like)
        if own is None or other is None or own.law != other.law or name not in other.names:
            return None
        term = other.operands[other.names.index(name)]
        sizes = {**own.sizes, "1": 1}
        if term is None or any(label not in sizes for axis in term for label in labels_of(axis)):
            return None
        return tuple(prod(sizes[label] for label in labels_of(axis)) for axis in term)

    def sums(self, node: fx.Node) -> bool:
        """Whether a call is the plain sum of its two operands."""
        rule, found = self._rule(node), signature(self.rules, node) if self._rule(node) is not None else None
        if rule is None or found is None or not found.law or not rule.commutes:
            return False
        law = parse(found.law)
        return isinstance(law, Sum) and all(isinstance(term, Operand) for term in law.terms)

    def norm(self, node: fx.Node) -> Norm | None:
        """What a call norms; None if it does anything else."""
        found, law = self._lawful(node)
        normed = normed_in(law) if law is not None else None
        if found is None or normed is None or not isinstance(node.meta.get("val"), Tensor):
            return None
        term, source = next((t, n) for t, (name, n) in self._terms(node, found) if name == normed.operand)
        axes = tuple(axis for axis, label in enumerate(term or ()) if label in normed.labels)
        return None if source is None else Norm(source, axes, normed.centred)

    def alike(self, node: fx.Node, axis: int) -> bool:
        """Whether a call does the same linear thing to its one operand at every place of an axis of the result."""
        found, law = self._lawful(node)
        if found is None or not isinstance(law, Operand) or not isinstance(node.meta.get("val"), Tensor):
            return False
        term = next(t for t, (name, _) in self._terms(node, found) if name == law.name)
        return found.results[0][axis] in (term or ()) and found.results[0][axis] != "1"

    def factor(self, node: fx.Node, name: str) -> Factor | None:
        """How the argument `name`, a number, multiplies operands of a call; None if it does not."""
        _, law = self._lawful(node)
        return factor_in(law, name) if law is not None else None

    def numbers(self, node: fx.Node) -> frozenset[str]:
        """The arguments of a call that are numbers and of which its law says what they do."""
        _, law = self._lawful(node)
        given = Call.of(node).arguments
        return (
            frozenset(n for n in names(law) if type(given.get(n)) in (int, float)) if law is not None else frozenset()
        )

    def sizes(self, node: fx.Node) -> tuple[str, ...]:
        """The arguments of a call that its rule says to spell out sizes."""
        rule = self._rule(node)
        return rule.sizes if rule is not None else ()

    def scales_with(self, node: fx.Node, values: Collection[fx.Node]) -> bool:
        """Whether a factor of all these operands together is the same factor of the result."""
        _, law = self._lawful(node)
        if law is None:
            return False
        call = Call.of(node)
        own = frozenset(name for name, operand in call.operands if operand in values)
        absent = frozenset(name for name in names(law) - own if call.arguments.get(name) is None)
        absent -= {name for name, operand in call.operands if operand is not None}
        return scales_with(law, own, absent)

    def keeps_factors(self, node: fx.Node) -> bool:
        """Whether a positive factor of the one operand is the same factor of the result."""
        _, law = self._lawful(node)
        return isinstance(law, Apply) and law.degree == 1 and isinstance(law.argument, Operand)

    def ordered_by(self, node: fx.Node, axis: int) -> fx.Node | None:
        """The operand whose entries have along an axis the order that those of the result have; None if none is known.

        A cast, a number above zero that multiplies or divides, a function that increases.
        """
        moved = self.moved(node)
        if moved is not None:
            return moved.source if moved.still and not moved.by else None
        read = [operand for _, operand in Call.of(node).operands if operand is not None]
        rule = self._rule(node)
        if rule is None or len(read) != 1 or not isinstance(node.meta.get("val"), Tensor):
            return None
        if rule.increases:
            along = self.pointwise(node) or Call.of(node).dims("dim", "self") == (axis % node.meta["val"].ndim,)
            return read[0] if along else None
        given = Call.of(node).arguments
        factors = [name for name in self.numbers(node) if (f := self.factor(node, name)) is not None and f.whole]
        scaled = len(factors) == 1 and self.scales_with(node, read) and given[factors[0]] > 0
        return read[0] if scaled and self.pointwise(node) else None

    def looks_up(self, node: fx.Node) -> bool:
        """Whether a call picks rows of one operand by whole numbers in another."""
        found = self.moved(node)
        return found is not None and bool(found.by)

    def commutes(self, node: fx.Node) -> bool:
        """Whether the two operands of a call may stand in either order."""
        rule = self._rule(node)
        return rule is not None and rule.commutes

    def filling(self, node: fx.Node) -> float | None:
        """The number that a call puts everywhere in its result; None if it does not, or not one that is known."""
        rule = self._rule(node)
        number: Any = None if rule is None else rule.number
        if isinstance(number, str):
            number = Call.of(node).arguments.get(number)
        return number if isinstance(number, int | float) else None

    def _lawful(self, node: fx.Node) -> tuple[Signature | None, Expr | None]:
        """A call in terms of labels, and its law."""
        found = signature(self.rules, node) if self._rule(node) is not None else None
        return found, parse(found.law) if found is not None and found.law else None

    def _terms(self, node: fx.Node, found: Signature) -> Iterator[tuple[Term, tuple[str, fx.Node | None]]]:
        """Every operand with the labels of its axes."""
        return zip(found.operands, Call.of(node).operands, strict=True)

    def _rule(self, node: fx.Node) -> Rule | None:
        return self.rules.find(node) if node.op == "call_function" else None


OPERATORS = Operators()
"""The operators that come with fxmerge."""


def is_random(node: fx.Node) -> bool:
    """Whether a call draws numbers: dropout does, unless it does not train or drops none."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    call = Call.of(node)
    idle = any(call[name] is False for name in ("train", "training"))
    return not idle and all(call[name] != 0 for name in ("p", "dropout_p", "dropout"))


def _of_one(node: fx.Node, read: Sequence[fx.Node], sketch: _Sketch | None = None) -> Moved | None:
    if not read:
        return None
    source, *by = read
    before, after = source.meta.get("val"), node.meta.get("val")
    after = after[0] if isinstance(after, tuple | list) and after else after
    if not isinstance(before, Tensor) or not isinstance(after, Tensor) or before.is_complex() != after.is_complex():
        return None
    if any(n.meta["val"].is_floating_point() or n.meta["val"].is_complex() for n in by):
        return None
    cast = before.dtype != after.dtype or before.device != after.device
    if by or sketch is None:
        return Moved(source, tuple(by), cast=cast)
    return Moved(source, (), sketch.turned(), sketch.reshaped(), cast, sketch.places())


# -- what a rule does with axes ------------------------------------------------------------------------------


@dataclass
class _Sketch:
    """A ledger for one call: it hands out fresh axes and notes which operands are asked for."""

    read: dict[fx.Node, tuple[Axis, ...]] = field(default_factory=dict)
    result: Sequence[Held] = ()
    computes: bool = False
    """Whether the rule says how numbers follow from others."""
    coupler: Coupler = field(default_factory=lambda: Coupler(lambda a, b: None, lambda axis, reason: None))

    def held(self, node: fx.Node) -> tuple[Held, ...]:
        return self.read.setdefault(node, tuple(Axis(Class(int(size))) for size in node.meta["val"].shape))

    def number(self, node: fx.Node) -> Tensor | None:
        return None

    def equate(self, a: Axis, b: Axis) -> None:
        pass

    def rigid(self, axis: Axis) -> None:
        pass

    def pin(self, axis: Axis, reason: str) -> None:
        pass

    def follow(self, node: fx.Node, law: str, labels: Mapping[str, Mapping[str, Axis]]) -> None:
        self.computes = True

    def turned(self) -> tuple[int, ...] | None:
        places: Mapping[int, int] = {id(axis): number for number, axis in enumerate(self._source())}
        found = [places.get(id(axis)) for axis in self.result]
        order = tuple(place for place in found if place is not None)
        return order if len(order) == len(found) and sorted(order) == sorted(places.values()) else None

    def places(self) -> tuple[int | None, ...]:
        return tuple(self._place(axis) for axis in self.result)

    def _place(self, axis: Held) -> int | None:
        """The axis of the source that begins with what an axis holds."""
        if not isinstance(axis, Axis):
            return None
        own = [id(part) for part in segments(axis)]
        for place, whole in enumerate(self._source()):
            if axis is whole or (axis.size > 1 and [id(part) for part in segments(whole)][: len(own)] == own):
                return place
        return None

    def reshaped(self) -> bool:
        before = [axis for axis in self._source() if axis.size != 1]
        after = [factor for axis in restore(self.result, self.coupler) for factor in factors(axis)]
        return [id(axis) for axis in before] == [id(axis) for axis in after]

    def _source(self) -> tuple[Axis, ...]:
        return next(iter(self.read.values()), ())


def _sketch(node: fx.Node, rule: Rule) -> _Sketch | None:
    """What a rule for moves does with the axes of a call; None if it does not know the call, or says how to compute."""
    sketch = _Sketch()
    if rule.moves is None:
        return None
    try:
        result = rule.moves(Move(node, Call.of(node).arguments, sketch))
        if isinstance(node.meta.get("val"), Tensor):
            sketch.result = tuple(result)
    except Exception:  # the analysis reports what a rule raises
        return None
    return None if sketch.computes else sketch
