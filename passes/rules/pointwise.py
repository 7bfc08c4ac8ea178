"""Operators on single numbers: every axis broadcasts; the law says what scales and signs do."""

from __future__ import annotations

from fxmerge.coupling import Call, couples

UNARY = "... -> ..."
BINARY = "..., ... -> ..."


def _names(text: str) -> tuple[str, ...]:
    return tuple(f"aten.{name}" for name in text.split())


rigid_functions = couples(
    *_names(
        """gelu silu sigmoid exp exp2 expm1 log log2 log10 log1p softplus hardswish hardsigmoid hardtanh elu selu celu mish
        logit log_sigmoid log_sigmoid_forward.default acos acosh ceil floor round.default round.decimals frac
        trunc clamp.default clamp_min.default clamp_max.default clamp.Tensor clamp_min.Tensor clamp_max.Tensor
        logical_not bitwise_not isnan isinf isfinite lgamma digamma threshold.default nan_to_num special_expit
        eq.Scalar ne.Scalar ge.Scalar gt.Scalar le.Scalar lt.Scalar remainder.Scalar fmod.Scalar bitwise_and.Scalar
        bitwise_or.Scalar bitwise_xor.Scalar __and__.Scalar __or__.Scalar __lshift__.Scalar __rshift__.Scalar
        floor_divide.Scalar pow.Scalar rrelu_with_noise_functional erfinv i0"""
    ),
    UNARY,
    "rigid(self)",
)
odd_functions = couples(
    *_names("tanh erf sin asin sinh asinh atan atanh tan softsign hardshrink.default softshrink sign sgn"), UNARY, "odd(self)"
)
even_functions = couples(*_names("cos cosh"), UNARY, "even(self)")
relu = couples(*_names("relu leaky_relu"), UNARY, "positive(self)")
absolute = couples(*_names("abs"), UNARY, "absolute(self)")
neg = couples(*_names("neg mul.Scalar div.Scalar positive conj_physical"), UNARY, "self")
square = couples(*_names("square"), UNARY, "power(self, 2)")
sqrt = couples(*_names("sqrt"), UNARY, "power(self, 0.5)")
rsqrt = couples(*_names("rsqrt"), UNARY, "power(self, -0.5)")
reciprocal = couples(*_names("reciprocal"), UNARY, "power(self, -1)")


@couples("aten.pow.Tensor_Scalar")
def power(call: Call) -> tuple[str, str]:
    return UNARY, f"power(self, {call['exponent']})"


@couples("aten.div.Scalar_mode")
def divide_by_number(call: Call) -> tuple[str, str]:
    return UNARY, "self" if call["rounding_mode"] is None else "rigid(self)"


@couples(*_names("add.Scalar sub.Scalar rsub.Scalar"))
def shift(call: Call) -> tuple[str, str]:
    return UNARY, "self + other"


add = couples(*_names("add.Tensor sub.Tensor rsub.Tensor"), BINARY, "self + other")
multiply = couples(*_names("mul.Tensor multiply.Tensor"), BINARY, "self * other")
divide = couples(*_names("div.Tensor divide.Tensor true_divide.Tensor"), BINARY, "self / other")


@couples("aten.div.Tensor_mode")
def divide_rounded(call: Call) -> tuple[str, str]:
    return BINARY, "self / other" if call["rounding_mode"] is None else "rigid(self / other)"


rigid_pairs = couples(
    *_names(
        """eq.Tensor ne.Tensor ge.Tensor gt.Tensor le.Tensor lt.Tensor logical_and logical_or logical_xor
        bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor __and__.Tensor __or__.Tensor __xor__.Tensor
        min.other max.other minimum maximum fmod.Tensor remainder.Tensor floor_divide.default atan2 pow.Tensor_Tensor
        logaddexp xlogy.Tensor hypot nextafter copysign.Tensor heaviside __lshift__.Tensor __rshift__.Tensor"""
    ),
    BINARY,
    "rigid(self + other)",
)
lerp = couples(*_names("lerp.Tensor"), "..., ..., ... -> ...", "self + end * weight + self * weight")
lerp_number = couples(*_names("lerp.Scalar"), BINARY, "self + end")
addcmul = couples(*_names("addcmul"), "..., ..., ... -> ...", "self + tensor1 * tensor2")
addcdiv = couples(*_names("addcdiv"), "..., ..., ... -> ...", "self + tensor1 / tensor2")
prelu = couples(*_names("prelu"), "n ..., 1 -> n ...", "positive(self)")

WHERE = "rigid(condition) * (self + other)"

where = couples(*_names("where.self where.ScalarSelf where.ScalarOther where.Scalar"), "..., ..., ... -> ...", WHERE)
masked_fill = couples(*_names("masked_fill.Scalar masked_fill.Tensor"), "..., ..., ... -> ...", "rigid(mask) * (self + value)")
glu_halves = couples(*_names("_glu_halves"), BINARY, "self * rigid(other)")
