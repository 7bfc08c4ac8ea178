"""Products with a weight are `linear`; other products are `matmul`."""

from __future__ import annotations

from torch import fx

from fxmerge.rewrite import Match, Refusal, either, op, rewrite, var
from passes.rewrites.common import is_moved_tensor, is_tensor_of_program, is_vector, rank, shape

x, y, w, b = var("x"), var("y"), var("w"), var("b")


def _is_weight(match: Match) -> Refusal | None:
    if not is_tensor_of_program(match["w"], match):
        return Refusal("the second factor is no tensor of the model", match["w"])
    if rank(match["w"]) != 2 or rank(match["x"]) < 2:
        return Refusal(f"a product of {rank(match['x'])} and {rank(match['w'])} axes", match.root)
    return None


def _is_weight_and_bias(match: Match) -> Refusal | None:
    if shape(match["b"]) != shape(match.root)[-1:]:
        return Refusal("what is added is no vector of the output features", match["b"])
    return _is_weight(match)


@rewrite(op("aten.addmm.default", b, x, w), check=_is_weight_and_bias)
def addmm_as_linear(match: Match) -> fx.Node:
    """addmm(b, x, W)  -->  linear(x, Wᵀ, b)"""
    turned = match.call("aten.permute.default", match["w"], [1, 0])
    return match.call("aten.linear.default", match["x"], turned, match["b"])


@rewrite(either(op("aten.mm.default", x, w), op("aten.matmul.default", x, w)), check=_is_weight)
def product_as_linear(match: Match) -> fx.Node:
    """x W  -->  linear(x, Wᵀ)"""
    turned = match.call("aten.permute.default", match["w"], [1, 0])
    return match.call("aten.linear.default", match["x"], turned)


def _is_bias(match: Match) -> Refusal | None:
    if not is_vector(match["b"], shape(match.root)[-1], match):
        return Refusal("what is added is no vector of the model over the output features", match.root)
    return None


@rewrite(op("aten.add.Tensor", op("aten.linear.default", x, w), b).either_order(), check=_is_bias)
def bias_into_linear(match: Match) -> fx.Node:
    """linear(x, W) + b  -->  linear(x, W, b)"""
    return match.call("aten.linear.default", match["x"], match["w"], match["b"])


def _is_computed(match: Match) -> Refusal | None:
    if match["b"] is None or is_moved_tensor(match["b"]):
        return Refusal("the bias is a tensor of the model", match.root)
    return None


@rewrite(op("aten.linear.default", x, w, b), check=_is_computed)
def computed_bias_apart(match: Match) -> fx.Node:
    """linear(x, W, b)  -->  linear(x, W) + b, where b is computed (joined of a query's and a value's bias, say)"""
    product = match.call("aten.linear.default", match["x"], match["w"])
    return match.call("aten.add.Tensor", product, match["b"])


def _same_rows(match: Match) -> Refusal | None:
    _, linear, flattened = match.nodes
    if len(linear.users) > 1:
        return Refusal("aten.linear.default is used elsewhere too", linear)
    source, result = match.shape("x"), shape(match.root)
    flat, out = shape(flattened)[-1], shape(linear)[-1]
    if source[-1:] != (flat,) or result[-1:] != (out,):
        return Refusal("the features are reshaped too", match.root)
    return None if source[:-1] == result[:-1] else Refusal("the rows are not restored", match.root)


@rewrite(
    op(
        "aten.reshape.default",
        op("aten.linear.default", op("aten.reshape.default", x, var("flat")), w, b),
        var("sizes"),
    ),
    check=_same_rows,
    shared=True,  # several layers may read the same rows
)
def linear_on_rows(match: Match) -> fx.Node:
    """reshape(linear(reshape(x, rows), W, b))  -->  linear(x, W, b)"""
    arguments = [match["x"], match["w"], *([] if match["b"] is None else [match["b"]])]
    return match.call("aten.linear.default", *arguments)


@rewrite(either(op("aten.bmm.default", x, y), op("aten.mm.default", x, y)))
def one_product(match: Match) -> fx.Node:
    """bmm(x, y)  -->  matmul(x, y)"""
    return match.call("aten.matmul.default", match["x"], match["y"])


@rewrite(op("aten.baddbmm.default", b, x, y, beta=var("beta"), alpha=var("alpha")))
def product_and_sum(match: Match) -> fx.Node:
    """baddbmm(b, x, y, β, α)  -->  α · matmul(x, y) + β · b"""
    product = match.call("aten.matmul.default", match["x"], match["y"])
    if match["alpha"] != 1:
        product = match.call("aten.mul.Tensor", product, match["alpha"])
    if match["beta"] == 0:
        return product
    added = match["b"] if match["beta"] == 1 else match.call("aten.mul.Tensor", match["b"], match["beta"])
    return match.call("aten.add.Tensor", product, added)


LINEAR = (
    addmm_as_linear,
    product_as_linear,
    bias_into_linear,
    computed_bias_apart,
    linear_on_rows,
    one_product,
    product_and_sum,
)
