"""Moves in one spelling: a turn is a permute, two moves in a row are one, none moves nothing."""

from __future__ import annotations

from torch import fx

from fxmerge.rewrite import Match, Refusal, either, op, rewrite, var
from passes.rewrites.common import rank

x = var("x")


TURNS = either(op("aten.transpose.int", x, var("a"), var("b")), op("aten.t.default", x), op("aten.numpy_T.default", x))


@rewrite(TURNS)
def one_permute(match: Match) -> fx.Node:
    """transpose(x, a, b)  -->  permute(x, order)"""
    ranks = rank(match["x"])
    order = list(range(ranks))
    if "a" in match.bindings:
        a, b = match["a"] % ranks, match["b"] % ranks
        order[a], order[b] = order[b], order[a]
    else:
        order.reverse()
    return match.call("aten.permute.default", match["x"], order)


@rewrite(op("aten.permute.default", op("aten.permute.default", x, var("inner")), var("outer")), shared=True)
def permute_of_permute(match: Match) -> fx.Node:
    """permute(permute(x, a), b)  -->  permute(x, a[b])"""
    ranks = rank(match["x"])
    order = [match["inner"][axis] % ranks for axis in match["outer"]]
    return match.call("aten.permute.default", match["x"], order)


@rewrite(op("aten.reshape.default", op("aten.reshape.default", x, var("inner")), var("outer")), shared=True)
def reshape_of_reshape(match: Match) -> fx.Node:
    """reshape(reshape(x, a), b)  -->  reshape(x, b)"""
    return match.call("aten.reshape.default", match["x"], match["outer"])


def _moves_nothing(match: Match) -> Refusal | None:
    order = [axis % rank(match["x"]) for axis in match["order"]]
    return None if order == sorted(order) else Refusal("the axes change places", match.root)


@rewrite(op("aten.permute.default", x, var("order")), check=_moves_nothing)
def permute_to_itself(match: Match) -> fx.Node:
    """permute(x, 0 1 2 …)  -->  x"""
    found: fx.Node = match["x"]
    return found


def _same_shape(match: Match) -> Refusal | None:
    same = match.shape("x") == tuple(match.root.meta["val"].shape)
    return None if same else Refusal("the shape changes", match.root)


@rewrite(op("aten.reshape.default", x, var("sizes")), check=_same_shape)
def reshape_to_itself(match: Match) -> fx.Node:
    """reshape(x, shape of x)  -->  x"""
    found: fx.Node = match["x"]
    return found


LAYOUT = (one_permute, permute_of_permute, reshape_of_reshape, permute_to_itself, reshape_to_itself)
