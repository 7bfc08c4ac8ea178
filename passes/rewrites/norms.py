"""RMSNorm and LayerNorm that are written out become one operator, with their scale and shift.

    rms_norm(x, w)       =  w · x / √(mean(x²) + ε)
    layer_norm(x, w, b)  =  w · (x − mean(x)) / √(var(x) + ε) + b

Mean and variance are over the last axes; w and b are tensors of the model over the same axes, or absent.
"""

from __future__ import annotations

import torch
from torch import fx

from fxmerge.rewrite import Match, Refusal, either, op, rewrite, var
from passes.rewrites.common import fixed, is_number, is_tensor_of_program, shape, trailing
from passes.rewrites.pointwise import times

x, w, b, axes = var("x"), var("w"), var("b"), var("axes")
SIZES = var("sizes")


def _rsqrt(variance: object) -> object:
    return op("aten.rsqrt.default", op("aten.add.Tensor", variance, var("epsilon")))


def _last_axes(match: Match) -> Refusal | None:
    """Whether the mean is over the last axes, of fixed size, and ε a number."""
    if not is_number(match["epsilon"]):
        return Refusal("ε is no number", match.root)
    count = trailing(match["x"], match["axes"])
    if not count:
        return Refusal(f"the mean is over axes {list(match['axes'])}, not the last ones", match.root)
    if "axes2" in match.bindings and trailing(match["x"], match["axes2"]) != count:
        return Refusal("mean and variance are over different axes", match.root)
    sizes = match.shape("x")[-count:]
    if not all(fixed(match.program, size) for size in sizes):
        return Refusal(f"the size of axes {list(match['axes'])} depends on the input", match.root)
    return None


def _sizes(match: Match) -> list[int]:
    return list(match.shape("x")[-trailing(match["x"], match["axes"]) :])


SQUARES = op("aten.mean.dim", op("aten.pow.Tensor_Scalar", x, 2), axes, True)


@rewrite(times(x, _rsqrt(SQUARES)), check=_last_axes)
def rms_norm(match: Match) -> fx.Node:
    """x · rsqrt(mean(x²) + ε)  -->  rms_norm(x, ε)"""
    return match.call("aten.rms_norm.default", match["x"], _sizes(match), None, match["epsilon"])


CENTERED = op("aten.sub.Tensor", x, op("aten.mean.dim", x, axes, True))
VARIANCE = either(
    op("aten.mean.dim", op("aten.pow.Tensor_Scalar", CENTERED, 2), var("axes2"), True),
    op("aten.var.correction", either(x, CENTERED), var("axes2"), correction=var("correction"), keepdim=True),
    op("aten.var.dim", either(x, CENTERED), var("axes2"), var("correction"), True),
)


def _layer_norm_fits(match: Match) -> Refusal | None:
    correction = match.bindings.get("correction", 0)
    if correction is None or correction:
        return Refusal("the variance is divided by n − 1, not n", match.root)
    return _last_axes(match)


@rewrite(times(CENTERED, _rsqrt(VARIANCE)), check=_layer_norm_fits)
def layer_norm(match: Match) -> fx.Node:
    """(x − mean(x)) · rsqrt(var(x) + ε)  -->  layer_norm(x, ε)"""
    return match.call("aten.layer_norm.default", match["x"], _sizes(match), None, None, match["epsilon"])


# -- scale and shift -------------------------------------------------------------------------------------

RMS = op("aten.rms_norm.default", x, SIZES, eps=var("epsilon"))
LAYER = op("aten.layer_norm.default", x, SIZES, eps=var("epsilon"), cudnn_enable=var("cudnn"))
SCALED = op("aten.layer_norm.default", x, SIZES, var("w"), eps=var("epsilon"), cudnn_enable=var("cudnn"))


def _fits(match: Match) -> Refusal | None:
    """Whether the factor or summand is a tensor of the model over the normalised axes."""
    name = "b" if "b" in match.bindings else "w"
    value = match[name]
    own = isinstance(value, fx.Node) and is_tensor_of_program(value, match)
    if not own or shape(value) != tuple(match["sizes"]):
        return Refusal("the factor is no tensor of the model over the normalised axes", match.root)
    if value.meta["val"].dtype != match["x"].meta["val"].dtype:
        return Refusal("the factor has another dtype", match.root)
    return None


@rewrite(times(RMS, w), check=_fits)
def scale_into_rms_norm(match: Match) -> fx.Node:
    """w · rms_norm(x)  -->  rms_norm(x, w)"""
    return match.call("aten.rms_norm.default", match["x"], match["sizes"], match["w"], match["epsilon"])


@rewrite(times(LAYER, w), check=_fits)
def scale_into_layer_norm(match: Match) -> fx.Node:
    """w · layer_norm(x)  -->  layer_norm(x, w)"""
    return match.call("aten.layer_norm.default", match["x"], match["sizes"], match["w"], None, match["epsilon"])


@rewrite(op("aten.add.Tensor", SCALED, b).either_order(), check=_fits)
def shift_into_layer_norm(match: Match) -> fx.Node:
    """layer_norm(x, w) + b  -->  layer_norm(x, w, b)"""
    return match.call("aten.layer_norm.default", match["x"], match["sizes"], match["w"], match["b"], match["epsilon"])


# -- casts -----------------------------------------------------------------------------------------------

WIDE = op("aten._to_copy.default", x, dtype=var("wide"))


def _only_widens(match: Match) -> Refusal | None:
    own = match["x"].meta["val"].dtype
    if match["narrow"] != own:
        return Refusal(f"the norm of {own} becomes {match['narrow']}", match.root)
    if not own.is_floating_point or torch.promote_types(own, match["wide"]) != match["wide"]:
        return Refusal(f"the norm is computed in {match['wide']}, which does not hold {own}", match.root)
    return None if is_number(match["epsilon"]) else Refusal("ε depends on the dtype", match.root)


@rewrite(
    op(
        "aten._to_copy.default",
        either(
            op("aten.rms_norm.default", WIDE, SIZES, eps=var("epsilon")),
            op("aten.layer_norm.default", WIDE, SIZES, eps=var("epsilon"), cudnn_enable=var("cudnn")),
        ),
        dtype=var("narrow"),
    ),
    check=_only_widens,
)
def norm_in_its_own_dtype(match: Match) -> fx.Node:
    """cast(norm(cast(x, float32)), half)  -->  norm(x), which computes in float32 by itself"""
    if match.nodes[1].target is torch.ops.aten.rms_norm.default:
        return match.call("aten.rms_norm.default", match["x"], match["sizes"], None, match["epsilon"])
    return match.call("aten.layer_norm.default", match["x"], match["sizes"], None, None, match["epsilon"])


NORMS = (
    rms_norm,
    layer_norm,
    norm_in_its_own_dtype,
    scale_into_rms_norm,
    scale_into_layer_norm,
    shift_into_layer_norm,
)
