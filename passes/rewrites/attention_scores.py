"""The pattern of attention scores: a product of queries and keys, scaled and masked in any order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from fxmerge.coupling import Call
from fxmerge.ir.program import Program, target_name
from fxmerge.rewrite.pattern import Attempt, Bound, Pattern
from passes.rewrites.common import is_tensor, rank, shape
from passes.rewrites.masks import number

Factors = tuple[tuple[Any, int], ...]
"""A product of numbers: each a number or a constant without axes, and the power 1 or −1."""


def product(factors: Factors, program: Program) -> float | None:
    """A product as a number; None if one of its factors is not known."""
    result = 1.0
    for value, power in factors:
        factor = number(value, program)
        if factor is None or (power < 0 and factor == 0):
            return None
        result *= factor**power
    return result


@dataclass(frozen=True)
class Term:
    """What is added to the scores: `factors` · `node`."""

    node: fx.Node
    factors: Factors


@dataclass(frozen=True)
class Fill:
    """Scores replaced by a number: where the boolean `node` is true if `hides`, else where it is false."""

    node: fx.Node
    hides: bool
    factors: Factors


@dataclass(frozen=True)
class _Found:
    """What has been peeled off so far, from the softmax inwards."""

    factors: Factors = ()
    terms: tuple[Term, ...] = ()
    fills: tuple[Fill, ...] = ()

    def times(self, factor: Any, power: int = 1) -> _Found:
        return replace(self, factors=(*self.factors, (factor, power)))

    def plus(self, node: fx.Node, sign: int = 1) -> _Found:
        factors = self.factors if sign > 0 else (*self.factors, (sign, 1))
        return replace(self, terms=(*self.terms, Term(node, factors)))

    def filled(self, node: fx.Node, hides: bool, value: Any) -> _Found:
        return replace(self, fills=(*self.fills, Fill(node, hides, (*self.factors, (value, 1)))))


class Scores(Pattern):
    """Binds `q` and `kt` (keys, transposed), `factors`, `terms`, `fills`, and the calls `product` and `scores`.

    `product` is the innermost call, `scores` the outermost, whose result softmax takes.
    """

    def match(self, value: Any, bound: Bound, tried: Attempt) -> Iterator[Bound]:
        yield from self._walk(value, replace(bound, bindings={**bound.bindings, "scores": value}), tried, _Found())

    def __str__(self) -> str:
        return "scaled and masked product of queries and keys"

    def _walk(self, value: Any, bound: Bound, tried: Attempt, found: _Found) -> Iterator[Bound]:
        if not isinstance(value, fx.Node) or value.op != "call_function":
            place = value if is_tensor(value) else None
            return tried.fail(bound, "the scores are no product of queries and keys", place)
        inside = replace(bound, nodes=(*bound.nodes, value))
        if target_name(value.target) == "aten.matmul.default":
            q, kt = value.args
            known = {"factors": found.factors, "terms": found.terms, "fills": found.fills}
            yield replace(inside, bindings={**inside.bindings, **known, "q": q, "kt": kt, "product": value})
            return None
        steps = list(_steps(value, found))
        if not steps:
            name = target_name(value.target)
            return tried.fail(bound, f"{name} stands between the scores and their softmax", value)
        yield from self._first(steps, inside, tried)
        return None

    def _first(self, steps: list[tuple[fx.Node, _Found]], bound: Bound, tried: Attempt) -> Iterator[Bound]:
        """The first of several ways inwards that ends at a product; the others' failures are of no interest then."""
        failures = []
        for scores, found in steps:
            own = Attempt()
            ways = list(self._walk(scores, bound, own, found))
            if ways:
                yield from ways
                return
            failures.append(own)
        deepest = max(failures, key=lambda attempt: attempt.depth)
        if deepest.node is not None and deepest.depth > tried.depth:
            tried.depth, tried.reason, tried.node = deepest.depth, deepest.reason, deepest.node


def _steps(node: fx.Node, found: _Found) -> Iterator[tuple[fx.Node, _Found]]:
    """The scores inside one call that scales, masks or casts them, and what is known then; two for a sum."""
    name, given = target_name(node.target), Call.of(node).arguments
    if name in ("aten.mul.Tensor", "aten.div.Tensor"):
        yield from _scaled(name, given, found)
    elif name in ("aten.add.Tensor", "aten.sub.Tensor") and given["alpha"] == 1:
        yield from _masked(node, given, found)
    elif name == "aten.masked_fill.Scalar":
        yield given["self"], found.filled(given["mask"], True, given["value"])
    elif name.startswith("aten.where."):
        a, b = given["self"], given["other"]
        if is_tensor(a) and _is_number(b):
            yield a, found.filled(given["condition"], False, b)
        if is_tensor(b) and _is_number(a):
            yield b, found.filled(given["condition"], True, a)
    elif name == "aten._to_copy.default":
        own, wide = given["self"].meta["val"].dtype, node.meta["val"].dtype
        if own.is_floating_point and torch.promote_types(own, wide) == wide:
            yield given["self"], found


def _scaled(name: str, given: Mapping[str, Any], found: _Found) -> Iterator[tuple[fx.Node, _Found]]:
    a, b = given["self"], given["other"]
    if _is_number(b):
        yield a, found.times(b, 1 if name == "aten.mul.Tensor" else -1)
    elif name == "aten.mul.Tensor" and _is_number(a):
        yield b, found.times(a)


def _masked(node: fx.Node, given: Mapping[str, Any], found: _Found) -> Iterator[tuple[fx.Node, _Found]]:
    """Scores and mask of a sum in either order: the scores have the shape of the result."""
    a, b = given["self"], given["other"]
    if not (is_tensor(a) and is_tensor(b)):
        return
    if shape(a) == shape(node):
        yield a, found.plus(b, 1 if node.target is torch.ops.aten.add.Tensor else -1)
    if shape(b) == shape(node) and node.target is torch.ops.aten.add.Tensor:
        yield b, found.plus(a)


def _is_number(value: Any) -> bool:
    """A number, or a tensor without axes (what number it is, is checked later)."""
    return (isinstance(value, int | float) and not isinstance(value, bool)) or (is_tensor(value) and not rank(value))
