"""Find the gate where a model spells it out.

x · sigmoid(s · x)  -->  gate(x, s)
"""

from __future__ import annotations

from torch import fx

from fxmerge.rewrite import Match, Refusal, op, rewrite, var

x, s = var("x"), var("s")


def fits(match: Match) -> Refusal | None:
    """A scale has one number for every feature."""
    value = getattr(match["s"], "meta", {}).get("val")
    if value is None or tuple(value.shape) != match.shape("x")[-1:]:
        return Refusal("the scale is no vector of the features", match.root)
    return None


product = op("aten.mul.Tensor", x, op("aten.sigmoid", op("aten.mul.Tensor", s, x).either_order())).either_order()


@rewrite(product, check=fits)
def find_gate(match: Match) -> fx.Node:
    """x · sigmoid(s · x)  -->  gate(x, s)"""
    return match.call("example.gate.default", match["x"], match["s"])
