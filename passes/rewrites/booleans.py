"""Masks in one spelling: negations are carried into comparisons, casts to boolean are comparisons with zero."""

from __future__ import annotations

import torch
from torch import fx

from fxmerge.rewrite import Match, Refusal, either, op, rewrite, var

x, c = var("x"), var("c")


def _is_boolean(match: Match) -> Refusal | None:
    own = match["x"].meta["val"].dtype
    return None if own is torch.bool else Refusal(f"the operand is {own}, not boolean", match.root)


@rewrite(op("aten._to_copy.default", x, dtype=torch.bool))
def boolean_cast(match: Match) -> fx.Node:
    """cast(x, bool)  -->  x ≠ 0"""
    return match.call("aten.ne.Scalar", match["x"], 0)


@rewrite(either(op("aten.bitwise_not.default", x), op("aten.eq.Scalar", x, 0)), check=_is_boolean)
def one_negation(match: Match) -> fx.Node:
    """~x, x = 0  -->  not x"""
    return match.call("aten.logical_not.default", match["x"])


@rewrite(
    either(
        op("aten.ne.Scalar", x, 0),
        op("aten.logical_not.default", op("aten.logical_not.default", x)),
    ),
    check=_is_boolean,
    shared=True,
)
def no_negation(match: Match) -> fx.Node:
    """x ≠ 0, not not x  -->  x"""
    found: fx.Node = match["x"]
    return found


@rewrite(op("aten.logical_not.default", op("aten.eq.Scalar", x, c)), shared=True)
def not_equal(match: Match) -> fx.Node:
    """not (x = c)  -->  x ≠ c"""
    return match.call("aten.ne.Scalar", match["x"], match["c"])


@rewrite(op("aten.logical_not.default", op("aten.ne.Scalar", x, c)), shared=True)
def equal(match: Match) -> fx.Node:
    """not (x ≠ c)  -->  x = c"""
    return match.call("aten.eq.Scalar", match["x"], match["c"])


BOOLEANS = (boolean_cast, one_negation, no_negation, not_equal, equal)
