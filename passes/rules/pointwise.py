"""Operators on single numbers: every axis broadcasts; the law says what scales and signs do."""

from __future__ import annotations

from fxmerge.coupling import Call, couples
from passes.rules.names import aten

UNARY = "... -> ..."
BINARY = "..., ... -> ..."


rigid_functions = couples(
    *aten(
        """
        gelu silu softplus hardswish hardsigmoid hardtanh elu selu celu mish relu6 rrelu acos
        acosh arccos arccosh ceil floor round trunc fix frac clamp.default clip.default
        clamp_min.default clamp_max.default logical_not bitwise_not isnan isinf isfinite isneginf isposinf signbit
        lgamma digamma erfc erfinv i0 sinc threshold nan_to_num angle deg2rad rad2deg ge.Scalar gt.Scalar le.Scalar
        lt.Scalar eq.Scalar ne.Scalar greater.Scalar greater_equal.Scalar less.Scalar less_equal.Scalar not_equal.Scalar
        remainder.Scalar fmod.Scalar floor_divide.Scalar pow.Scalar bitwise_and.Scalar bitwise_or.Scalar
        bitwise_xor.Scalar __and__.Scalar __or__.Scalar __xor__.Scalar __lshift__.Scalar __rshift__.Scalar
        special_erf special_erfc special_log_ndtr special_ndtr special_entr special_sinc"""
    ),
    UNARY,
    "rigid(self)",
)
rigid_increasing = couples(
    *aten("sigmoid exp exp2 expm1 log log2 log10 log1p logit log_sigmoid special_expit special_expm1 special_log1p"),
    UNARY,
    "rigid(self)",
    increases=True,
)
odd_functions = couples(*aten("sin tan hardshrink softshrink sign sgn"), UNARY, "odd(self)")
odd_increasing = couples(
    *aten("tanh erf asin sinh asinh atan atanh arcsin arcsinh arctan arctanh"), UNARY, "odd(self)", increases=True
)
even_functions = couples(*aten("cos cosh"), UNARY, "even(self)")
relu = couples(*aten("relu leaky_relu"), UNARY, "positive(self)")
absolute = couples(*aten("abs absolute"), UNARY, "absolute(self)")
linear_functions = couples(*aten("neg negative positive"), UNARY, "self")
scale = couples(*aten("mul.Scalar multiply.Scalar"), UNARY, "self * other")
divide_scale = couples(*aten("div.Scalar divide.Scalar"), UNARY, "self / other")
square = couples(*aten("square"), UNARY, "power(self, 2)")
sqrt = couples(*aten("sqrt"), UNARY, "power(self, 0.5)")
rsqrt = couples(*aten("rsqrt"), UNARY, "power(self, -0.5)")
reciprocal = couples(*aten("reciprocal"), UNARY, "power(self, -1)")


@couples("aten.pow.Tensor_Scalar")
def power(call: Call) -> tuple[str, str]:
    return UNARY, f"power(self, {call['exponent']})"


@couples("aten.div.Scalar_mode")
def divide_by_number(call: Call) -> tuple[str, str]:
    return UNARY, "self / other" if call["rounding_mode"] is None else "rigid(self)"


@couples(*aten("add.Scalar sub.Scalar subtract.Scalar rsub.Scalar"))
def shift(call: Call) -> tuple[str, str]:
    return UNARY, "self + other"


add = couples(*aten("add.Tensor"), BINARY, "self + other", commutes=True)
subtract = couples(*aten("sub.Tensor subtract.Tensor rsub.Tensor"), BINARY, "self + other")
multiply = couples(*aten("mul.Tensor multiply.Tensor"), BINARY, "self * other", commutes=True)
divide = couples(*aten("div.Tensor divide.Tensor true_divide.Tensor"), BINARY, "self / other")


@couples("aten.div.Tensor_mode")
def divide_rounded(call: Call) -> tuple[str, str]:
    return BINARY, "self / other" if call["rounding_mode"] is None else "rigid(self / other)"


rigid_pairs = couples(
    *aten(
        """ge.Tensor gt.Tensor le.Tensor lt.Tensor greater.Tensor greater_equal.Tensor less.Tensor less_equal.Tensor
        __lshift__.Tensor __rshift__.Tensor fmod.Tensor remainder.Tensor floor_divide.default atan2 arctan2 xlogy.Tensor
        nextafter copysign.Tensor isclose ldexp.Tensor"""
    ),
    BINARY,
    "rigid(self + other)",
)
symmetric_pairs = couples(
    *aten(
        """eq.Tensor ne.Tensor not_equal.Tensor logical_and logical_or logical_xor bitwise_and.Tensor bitwise_or.Tensor
        bitwise_xor.Tensor __and__.Tensor __or__.Tensor __xor__.Tensor min.other max.other minimum maximum fmin fmax
        logaddexp logaddexp2 hypot"""
    ),
    BINARY,
    "rigid(self + other)",
    commutes=True,
)
heaviside = couples(*aten("heaviside"), BINARY, "rigid(self + values)")
powers = couples(*aten("pow.Tensor_Tensor float_power.Tensor_Tensor"), BINARY, "rigid(self + exponent)")
lerp = couples(*aten("lerp.Tensor"), "..., ..., ... -> ...", "self + end * weight + self * weight")
lerp_number = couples(*aten("lerp.Scalar"), BINARY, "self + end")
addcmul = couples(*aten("addcmul"), "..., ..., ... -> ...", "self + tensor1 * tensor2")
addcdiv = couples(*aten("addcdiv"), "..., ..., ... -> ...", "self + tensor1 / tensor2")
clamp = couples(*aten("clamp.Tensor clip.Tensor"), "..., ..., ... -> ...", "rigid(self + min + max)")
clamp_min = couples(*aten("clamp_min.Tensor"), BINARY, "rigid(self + min)", commutes=True)
clamp_max = couples(*aten("clamp_max.Tensor"), BINARY, "rigid(self + max)", commutes=True)


@couples("aten.prelu.default", "aten._prelu_kernel.default")
def prelu(call: Call) -> tuple[str, str]:
    """One slope for all, or one for each channel."""
    slope = "..." if call.rank("weight") == call.rank("self") else "1" if call.shape("weight") in ((1,), ()) else "c"
    channels = "n c ..." if slope == "c" else "..."
    return f"{channels}, {slope} -> {channels}", "positive(self) * rigid(weight)"


WHERE = "rigid(condition) * (self + other)"

where = couples(*aten("where.self where.ScalarSelf where.ScalarOther where.Scalar"), "..., ..., ... -> ...", WHERE)
masked_fill = couples(*aten("masked_fill"), "..., ..., ... -> ...", "rigid(mask) * (self + value)")


@couples("aten.log_sigmoid_forward.default")
def log_sigmoid_forward(call: Call) -> tuple[str, str]:
    buffer = "..." if call.results[1] == call.result else "_"
    return f"... -> ..., {buffer}", "rigid(self)"
