"""Attention that is written out becomes one operator.

    softmax(s · q kᵀ + mask) v    =  scaled_dot_product_attention(q, k, v, mask, scale=s)

Scores may be scaled anywhere, masked by adding or by filling, in any order, and cast to float32 and back. A key that a
mask hides has no weight either way; only a query that sees no key at all could tell the two apart, so a score that
is *filled* must be low enough to swallow what it is added to, or the mask must show every query a key. Weights that are
no number may be put to 0: of a query that sees no key the operator's own are 0 too.
"""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from fxmerge.rewrite import Match, Refusal, either, op, rewrite, var
from passes.rewrites.attention_scores import Factors, Fill, Scores, Term, product
from passes.rewrites.common import axes_of, is_number, operators_of, rank, same_number, shape
from passes.rewrites.masks import ABSORBING, MASKED, every_query_sees_a_key, is_causal, number

x, q, k, v, mask = var("x"), var("q"), var("k"), var("v"), var("mask")
SDPA = "aten.scaled_dot_product_attention.default"


# -- softmax ---------------------------------------------------------------------------------------------


@rewrite(op("aten._softmax.default", x, var("dim"), False))
def one_softmax(match: Match) -> fx.Node:
    """_softmax(x, dim)  -->  softmax(x, dim)"""
    return match.call("aten.softmax.int", match["x"], match["dim"])


def _dtype_is_its_own(match: Match) -> Refusal | None:
    own = match["x"].meta["val"].dtype
    return None if match["dtype"] == own else Refusal(f"softmax of {own} is computed in {match['dtype']}", match.root)


@rewrite(op("aten.softmax.int", x, var("dim"), var("dtype")), check=_dtype_is_its_own)
def softmax_in_its_own_dtype(match: Match) -> fx.Node:
    """softmax(x, dim, dtype of x)  -->  softmax(x, dim)"""
    return match.call("aten.softmax.int", match["x"], match["dim"])


LARGEST = either(
    op("aten.amax.default", x, var("dim"), True),
    op("operator.getitem", op("aten.max.dim", x, var("dim"), True), 0),
)
POWERS = op("aten.exp.default", either(op("aten.sub.Tensor", x, LARGEST), x))


def _one_axis(match: Match) -> Refusal | None:
    dims = [axes_of(match[name], rank(match.root)) for name in ("dim", "over") if name in match.bindings]
    if len(dims[0]) != 1 or any(other != dims[0] for other in dims):
        return Refusal("the largest entry and the sum are over different axes", match.root)
    return None


@rewrite(op("aten.div.Tensor", POWERS, op("aten.sum.dim_IntList", POWERS, var("over"), True)), check=_one_axis)
def softmax(match: Match) -> fx.Node:
    """exp(x − max(x)) / sum(exp(x − max(x)))  -->  softmax(x)"""
    (dim,) = axes_of(match["over"], rank(match.root))
    return match.call("aten.softmax.int", match["x"], dim)


# -- numbers ---------------------------------------------------------------------------------------------


def _is_factor(match: Match) -> Refusal | None:
    return None if is_number(match["c"]) else Refusal("the factor is a tensor", match.root)


@rewrite(
    either(
        op("aten.permute.default", op("aten.mul.Tensor", x, var("c")), var("how")),
        op("aten.reshape.default", op("aten.mul.Tensor", x, var("c")), var("how")),
    ),
    check=_is_factor,
)
def factor_behind_move(match: Match) -> fx.Node:
    """permute(x · c)  -->  permute(x) · c"""
    moved = match.call(str(match.root.target), match["x"], match["how"])
    return match.call("aten.mul.Tensor", moved, match["c"])


def scale_argument(scale: float, width: int) -> dict[str, float]:
    """The argument `scale`, left out where it is the default 1 / √width."""
    return {} if same_number(scale, 1 / math.sqrt(width)) else {"scale": scale}


def _scale(match: Match) -> float:
    given = match["scale"]
    return float(given) if given is not None else 1 / math.sqrt(match.shape("q")[-1])


def _positive_factor(match: Match) -> Refusal | None:
    factor = match.bindings.get("c", match.bindings.get("over"))
    return None if is_number(factor) and factor > 0 else Refusal("the factor is no positive number", match.root)


WHOLE = {"attn_mask": mask, "is_causal": var("causal"), "scale": var("scale"), "enable_gqa": var("gqa")}
TIMES_C = op("aten.mul.Tensor", q, var("c"))
K_TIMES_C = op("aten.mul.Tensor", k, var("c"))
OVER_C = op("aten.div.Tensor", q, var("over"))


@rewrite(
    either(op(SDPA, TIMES_C, k, v, **WHOLE), op(SDPA, q, K_TIMES_C, v, **WHOLE), op(SDPA, OVER_C, k, v, **WHOLE)),
    check=_positive_factor,
)
def factor_into_attention(match: Match) -> fx.Node:
    """attention(c · q, k, v, scale=s)  -->  attention(q, k, v, scale=c·s)"""
    factor = match["c"] if "c" in match.bindings else 1 / match["over"]
    more = scale_argument(_scale(match) * factor, match.shape("q")[-1])
    if match["gqa"]:
        more |= {"enable_gqa": True}
    return match.call(SDPA, match["q"], match["k"], match["v"], match["mask"], 0.0, match["causal"], **more)


def _default_scale(match: Match) -> Refusal | None:
    if match["scale"] is None or scale_argument(match["scale"], match.shape("q")[-1]):
        return Refusal("the scale is not 1/√d written out", match.root)
    return None


@rewrite(op(SDPA, q, k, v, **WHOLE), check=_default_scale)
def default_scale(match: Match) -> fx.Node:
    """attention(q, k, v, scale=1/√d)  -->  attention(q, k, v)"""
    more = {"enable_gqa": True} if match["gqa"] else {}
    return match.call(SDPA, match["q"], match["k"], match["v"], match["mask"], 0.0, match["causal"], **more)


# -- attention written out -------------------------------------------------------------------------------

WEIGHTS = op("aten.softmax.int", Scores(), var("dim"), var("dtype"))
NARROW = op("aten._to_copy.default", WEIGHTS, dtype=var("narrow"))
GUARDED = op("aten.where", op("aten.isnan.default", var("guarded")), var("zero"), WEIGHTS)


def _fits(match: Match) -> Refusal | None:
    if "zero" in match.bindings and not _becomes_zero(match):
        return Refusal("weights that are no numbers do not become 0", match.root)
    queries, keys, values = (shape(node) for node in (match["q"], match["kt"], match["v"]))
    if axes_of(match["dim"], rank(match["scores"])) != (rank(match["scores"]) - 1,):
        return Refusal("softmax is not over the keys", match["scores"])
    if not len(queries) == len(keys) == len(values) or not queries[:-2] == keys[:-2] == values[:-2]:
        return Refusal(
            f"queries {list(queries)}, keys {list(keys)} and values {list(values)} broadcast", match["product"]
        )
    dtypes = {match[name].meta["val"].dtype for name in ("q", "kt", "v")} | {match.root.meta["val"].dtype}
    if len(dtypes) > 1:
        return Refusal("queries, keys and values have different dtypes", match.root)
    factor = product(match["factors"], match.program)
    if factor is None or not factor > 0:
        return Refusal("the scores are not multiplied by a positive number", match["product"])
    return _masks_fit(match)


def _becomes_zero(match: Match) -> bool:
    """Whether weights that are no numbers are the ones that are put to 0."""
    chosen = match.root.args[0]
    same = isinstance(chosen, fx.Node) and chosen.args[2] is match["guarded"]
    return same and number(match["zero"], match.program) == 0


def _masks_fit(match: Match) -> Refusal | None:
    own = match["q"].meta["val"].dtype
    for term in match["terms"]:
        if term.node.meta["val"].dtype != own:
            return Refusal(f"a mask of {term.node.meta['val'].dtype} is added to scores of {own}", term.node)
        if product(term.factors, match.program) is None:
            return Refusal("the mask is multiplied by a tensor", term.node)
    for fill in match["fills"]:
        value = product(fill.factors, match.program)
        if value is None or not value <= MASKED:
            return Refusal(f"hidden scores become {value or 'a tensor'}, which is no mask", fill.node)
        if not _as_minus_infinity(match, fill) and value > ABSORBING:
            what = f"hidden scores become {value:g}, not −∞"
            return Refusal(f"a query that sees no key would differ: {what}", fill.node)
    return None


def _as_minus_infinity(match: Match, fill: Fill) -> bool:
    """Whether hidden scores may as well be −∞: they are, or every query sees a key that nothing else hides."""
    alone = len(match["fills"]) == 1
    return product(fill.factors, match.program) == -math.inf or (
        alone and every_query_sees_a_key(fill.node, match.program, operators_of(match), hides=fill.hides)
    )


@rewrite(op("aten.matmul.default", either(WEIGHTS, NARROW, GUARDED), v), check=_fits)
def attention(match: Match) -> fx.Node:
    """softmax(s · q kᵀ + mask) v  -->  scaled_dot_product_attention(q, k, v, mask, scale=s)"""
    ranks = rank(match["kt"])
    keys = match.call("aten.permute.default", match["kt"], [*range(ranks - 2), ranks - 1, ranks - 2])
    more = scale_argument(_known(match, match["factors"]), match.shape("q")[-1])
    found = _mask(match)
    arguments = [match["q"], keys, match["v"], *([] if found is None else [found])]
    return match.call(SDPA, *arguments, **more)


def _mask(match: Match) -> fx.Node | None:
    """All masks as one: boolean (true where a key is seen), or added."""
    added: fx.Node | None = None
    for term in match["terms"]:
        node = _scaled(match, term)
        added = node if added is None else match.call("aten.add.Tensor", added, node)
    seen: fx.Node | None = None
    for fill in match["fills"]:
        if added is not None or not _as_minus_infinity(match, fill):
            added = _filled(match, added, fill)
            continue
        keep = match.call("aten.logical_not.default", fill.node) if fill.hides else fill.node
        seen = keep if seen is None else match.call("aten.logical_and.default", seen, keep)
    if seen is None or added is None:
        return _two_axes(match, added if seen is None else seen)
    return _two_axes(match, match.call("aten.where.ScalarOther", seen, added, -math.inf))


def _known(match: Match, factors: Factors) -> float:
    """A product that the check has found to be a number."""
    value = product(factors, match.program)
    assert value is not None
    return value


def _scaled(match: Match, term: Term) -> fx.Node:
    factor = _known(match, term.factors)
    return term.node if factor == 1 else match.call("aten.mul.Tensor", term.node, factor)


def _filled(match: Match, added: fx.Node | None, fill: Fill) -> fx.Node:
    """A mask to add, with the fill's value where it hides a key."""
    value = _known(match, fill.factors)
    if added is not None and fill.hides:
        return match.call("aten.where.ScalarSelf", fill.node, value, added)
    if added is not None:
        return match.call("aten.where.ScalarOther", fill.node, added, value)
    hidden = fill.node if fill.hides else match.call("aten.logical_not.default", fill.node)
    ones = match.call("aten._to_copy.default", hidden, dtype=match["q"].meta["val"].dtype)
    return match.call("aten.mul.Tensor", ones, value)


def _two_axes(match: Match, found: fx.Node | None) -> fx.Node | None:
    """A mask has an axis of queries and one of keys."""
    while found is not None and rank(found) < 2:
        found = match.call("aten.unsqueeze.default", found, 0)
    return found


# -- causal ----------------------------------------------------------------------------------------------


def _hides_the_future(match: Match) -> Refusal | None:
    if match["mask"] is None:
        return Refusal("there is no mask", match.root)
    if shape(match["mask"])[-2:] != (match.shape("q")[-2], match.shape("k")[-2]):
        return Refusal("the mask broadcasts over queries or keys", match["mask"])
    if not is_causal(match["mask"], match.program, operators_of(match)):
        return Refusal("the mask is not known to hide just the keys behind each query", match["mask"])
    return None


@rewrite(op(SDPA, q, k, v, mask, scale=var("scale"), enable_gqa=var("gqa")), check=_hides_the_future)
def causal_mask(match: Match) -> fx.Node:
    """attention(q, k, v, tril)  -->  attention(q, k, v, is_causal=True)"""
    more: dict[str, Any] = {} if match["scale"] is None else {"scale": match["scale"]}
    if match["gqa"]:
        more |= {"enable_gqa": True}
    return match.call(SDPA, match["q"], match["k"], match["v"], None, 0.0, True, **more)


ATTENTION = (
    one_softmax,
    softmax_in_its_own_dtype,
    softmax,
    factor_behind_move,
    attention,
    factor_into_attention,
    default_scale,
    causal_mask,
)
