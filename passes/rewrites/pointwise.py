"""Powers, roots and activations that are written out."""

from __future__ import annotations

import math
from typing import Any

from torch import fx

from fxmerge.rewrite import Match, Refusal, either, op, rewrite, var
from fxmerge.rewrite.pattern import Either, Pattern
from passes.rewrites.common import is_number, same_number

x, y = var("x"), var("y")


def times(a: Any, b: Any) -> Pattern:
    """a · b in either order."""
    return op("aten.mul.Tensor", a, b).either_order()


# -- powers and roots ------------------------------------------------------------------------------------


@rewrite(either(op("aten.mul.Tensor", x, x), op("aten.square.default", x)))
def square_as_power(match: Match) -> fx.Node:
    """x · x  -->  x²"""
    return match.call("aten.pow.Tensor_Scalar", match["x"], 2)


@rewrite(op("aten.pow.Tensor_Scalar", x, 0.5))
def power_as_root(match: Match) -> fx.Node:
    """x^½  -->  √x"""
    return match.call("aten.sqrt.default", match["x"])


@rewrite(
    either(
        op("aten.pow.Tensor_Scalar", x, -0.5),
        op("aten.reciprocal.default", op("aten.sqrt.default", x)),
        op("aten.pow.Tensor_Scalar", op("aten.sqrt.default", x), -1),
    )
)
def one_over_root(match: Match) -> fx.Node:
    """1 / √x  -->  rsqrt(x)"""
    return match.call("aten.rsqrt.default", match["x"])


def _same_dtype(match: Match) -> Refusal | None:
    same = match["x"].meta["val"].dtype == match.root.meta["val"].dtype
    return None if same else Refusal("the product has another dtype", match.root)


@rewrite(either(op("aten.mul.Tensor", x, 1), op("aten.div.Tensor", x, 1)), check=_same_dtype)
def times_one(match: Match) -> fx.Node:
    """x · 1  -->  x"""
    found: fx.Node = match["x"]
    return found


def _as_wide(match: Match) -> Refusal | None:
    same = match.shape("x") == match.shape("y")
    return None if same else Refusal("what is written over is of another shape", match.root)


@rewrite(op("aten.copy.default", x, y), check=_as_wide)
def written_over(match: Match) -> fx.Node:
    """copy(x, y), as an assignment to a slice gives it  -->  y in the type of x, which has a derivative"""
    dtype, found = match["x"].meta["val"].dtype, match["y"]
    assert isinstance(found, fx.Node)
    return found if found.meta["val"].dtype == dtype else match.call("aten._to_copy.default", found, dtype=dtype)


@rewrite(op("aten.rsub.Scalar", x, var("number")))
def one_subtraction(match: Match) -> fx.Node:
    """rsub(x, c)  -->  −x + c, which ONNX takes too"""
    return match.call("aten.add.Tensor", match.call("aten.neg.default", match["x"]), match["number"])


@rewrite(op("aten.div.Tensor", x, op("aten.sqrt.default", y)))
def divided_by_root(match: Match) -> fx.Node:
    """x / √y  -->  x · rsqrt(y)"""
    return match.call("aten.mul.Tensor", match["x"], match.call("aten.rsqrt.default", match["y"]))


# -- activations -----------------------------------------------------------------------------------------


@rewrite(times(x, op("aten.sigmoid.default", x)))
def silu(match: Match) -> fx.Node:
    """x · sigmoid(x)  -->  silu(x)"""
    return match.call("aten.silu.default", match["x"])


def _half(value: Any) -> Either:
    return either(op("aten.mul.Tensor", value, 0.5), op("aten.div.Tensor", value, 2))


def _half_x_times(factor: Pattern) -> Either:
    """½ · x · factor, in every order."""
    return either(times(_half(x), factor), times(x, _half(factor)), _half(times(x, factor)))


ERROR = op(
    "aten.add.Tensor",
    op("aten.erf.default", either(op("aten.mul.Tensor", x, var("times")), op("aten.div.Tensor", x, var("over")))),
    1,
)
"""1 + erf(x · c)"""


def _root_of_two(match: Match) -> Refusal | None:
    if "times" in match.bindings:
        fits = same_number(match["times"], 1 / math.sqrt(2))
    else:
        fits = same_number(match["over"], math.sqrt(2))
    return None if fits else Refusal("x is not divided by √2", match.root)


@rewrite(_half_x_times(ERROR), check=_root_of_two)
def gelu(match: Match) -> fx.Node:
    """½ x (1 + erf(x / √2))  -->  gelu(x)"""
    return match.call("aten.gelu.default", match["x"])


CUBE = either(op("aten.pow.Tensor_Scalar", x, 3), times(op("aten.pow.Tensor_Scalar", x, 2), x))
CUBIC = either(
    op("aten.mul.Tensor", CUBE, var("cubic")),
    times(times(op("aten.mul.Tensor", x, var("cubic")), x), x),
    times(op("aten.mul.Tensor", op("aten.pow.Tensor_Scalar", x, 2), var("cubic")), x),
)
"""c x³"""
SQUARED = either(
    op("aten.mul.Tensor", op("aten.pow.Tensor_Scalar", x, 2), var("cubic")),
    times(op("aten.mul.Tensor", x, var("cubic")), x),
)
"""c x²"""
INSIDE = either(
    op("aten.mul.Tensor", op("aten.add.Tensor", x, CUBIC).either_order(), var("scale")),
    times(op("aten.mul.Tensor", x, var("scale")), op("aten.add.Tensor", SQUARED, 1)),
    op("aten.mul.Tensor", times(x, op("aten.add.Tensor", SQUARED, 1)), var("scale")),
)
"""√(2/π) (x + 0.044715 x³)"""


def _of_the_approximation(match: Match) -> Refusal | None:
    if not same_number(match["scale"], math.sqrt(2 / math.pi)):
        return Refusal(f"{_shown(match['scale'])} is not √(2/π)", match.root)
    if not same_number(match["cubic"], 0.044715):
        return Refusal(f"{_shown(match['cubic'])} is not 0.044715", match.root)
    return None


def _shown(value: Any) -> str:
    return str(value) if is_number(value) else "a tensor"


@rewrite(_half_x_times(op("aten.add.Tensor", op("aten.tanh.default", INSIDE), 1)), check=_of_the_approximation)
def gelu_by_tanh(match: Match) -> fx.Node:
    """½ x (1 + tanh(√(2/π) (x + 0.044715 x³)))  -->  gelu(x, tanh)"""
    return match.call("aten.gelu.default", match["x"], approximate="tanh")


POINTWISE = (
    square_as_power,
    power_as_root,
    one_over_root,
    times_one,
    written_over,
    one_subtraction,
    divided_by_root,
    silu,
    gelu,
    gelu_by_tanh,
)
