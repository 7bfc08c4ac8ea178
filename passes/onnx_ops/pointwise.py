"""Operators that work entry by entry, on tensors and on numbers that are known."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fxmerge.from_onnx.call import Call, Known, Operator, from_onnx, known
from fxmerge.from_onnx.graph import dtype_of

Pair = Callable[[Any, Any], Any]


def _on_numbers(function: Callable[..., Any], result: torch.dtype | None = None) -> Callable[[Call], Any]:
    """The function on every entry of known numbers."""

    def run(call: Call) -> Any:
        given: list[Known] = list(call.inputs)
        values = np.frompyfunc(function, len(given), 1)(*(each.values for each in given))
        return known(values, result or given[-1].dtype)

    return run


def _pair(name: str, function: Pair, on_numbers: Pair | None = None, result: torch.dtype | None = None) -> Operator:
    def read(call: Call) -> Any:
        a, b = call.operand(0), call.operand(1)
        if not isinstance(a, Tensor) and not isinstance(b, Tensor):
            a = call.tensor(0)
        return function(a, b)

    read.__doc__ = f"torch's {getattr(function, '__name__', name)}"
    return from_onnx(name, on_known=_on_numbers(on_numbers or function, result))(read)


def _divide(a: Any, b: Any) -> Any:
    whole = all(not (x.is_floating_point() if isinstance(x, Tensor) else isinstance(x, float)) for x in (a, b))
    return torch.div(a, b, rounding_mode="trunc") if whole else a / b


def _divide_numbers(a: Any, b: Any) -> Any:
    if isinstance(a, float) or isinstance(b, float):
        return a / b
    if isinstance(a, int) and isinstance(b, int):
        return abs(a) // abs(b) * (1 if (a >= 0) == (b >= 0) else -1)
    return a // b  # sizes are positive


def _power(a: Any, b: Any) -> Any:
    result = torch.pow(a, b)
    return result.to(a.dtype) if isinstance(a, Tensor) else result


PAIRS = [
    _pair("Add", lambda a, b: a + b),
    _pair("Sub", lambda a, b: a - b),
    _pair("Mul", lambda a, b: a * b),
    _pair("Div", _divide, _divide_numbers),
    _pair("Pow", _power, lambda a, b: a**b),
    _pair("Equal", lambda a, b: _compared(torch.eq, a, b), operator.eq, torch.bool),
    _pair("Greater", lambda a, b: _compared(torch.gt, a, b), operator.gt, torch.bool),
    _pair("Less", lambda a, b: _compared(torch.lt, a, b), operator.lt, torch.bool),
    _pair("GreaterOrEqual", lambda a, b: _compared(torch.ge, a, b), operator.ge, torch.bool),
    _pair("LessOrEqual", lambda a, b: _compared(torch.le, a, b), operator.le, torch.bool),
    _pair("And", lambda a, b: torch.logical_and(*_both(a, b)), lambda a, b: bool(a and b), torch.bool),
    _pair("Or", lambda a, b: torch.logical_or(*_both(a, b)), lambda a, b: bool(a or b), torch.bool),
    _pair("Xor", lambda a, b: torch.logical_xor(*_both(a, b)), lambda a, b: bool(a) != bool(b), torch.bool),
    _pair("BitwiseAnd", lambda a, b: a & b),
    _pair("BitwiseOr", lambda a, b: a | b),
    _pair("BitwiseXor", lambda a, b: a ^ b),
]


def _compared(function: Callable[[Tensor, Any], Tensor], a: Any, b: Any) -> Tensor:
    turned: Any = {torch.gt: torch.lt, torch.lt: torch.gt, torch.ge: torch.le, torch.le: torch.ge}
    return function(a, b) if isinstance(a, Tensor) else turned.get(function, function)(b, a)


def _both(a: Any, b: Any) -> tuple[Tensor, Tensor]:
    return tuple(x if isinstance(x, Tensor) else torch.tensor(x) for x in (a, b))  # type: ignore[return-value]


def _remainder(call: Call) -> Any:
    if call.get("fmod", 0):
        return NotImplemented
    return _on_numbers(operator.mod)(call)


@from_onnx("Mod", on_known=_remainder)
def modulo(call: Call) -> Tensor:
    """fmod where the node asks for it, else remainder"""
    a, b = call.tensor(0), call.operand(1)
    return torch.fmod(a, b) if call.get("fmod", 0) else torch.remainder(a, b)


def _joined(name: str, function: Pair, on_numbers: Pair) -> Operator:
    def read(call: Call) -> Tensor:
        values = [call.operand(i) for i in range(len(call.inputs))]
        values.sort(key=lambda v: not isinstance(v, Tensor))
        result = values[0] if isinstance(values[0], Tensor) else call.tensor(0)
        for value in values[1:]:
            result = function(result, value)
        return result

    def fold(*values: Any) -> Any:
        result = values[0]
        for value in values[1:]:
            result = on_numbers(result, value)
        return result

    read.__doc__ = f"the {name.lower()} of all inputs"
    return from_onnx(name, on_known=_on_numbers(fold))(read)


def _largest(a: Tensor, b: Any) -> Tensor:
    return torch.maximum(a, b) if isinstance(b, Tensor) else torch.clamp_min(a, b)


def _smallest(a: Tensor, b: Any) -> Tensor:
    return torch.minimum(a, b) if isinstance(b, Tensor) else torch.clamp_max(a, b)


LARGER: Any = torch.sym_max
SMALLER: Any = torch.sym_min
JOINED = [
    _joined("Max", _largest, LARGER),
    _joined("Min", _smallest, SMALLER),
    _joined("Sum", lambda a, b: a + b, operator.add),
]


@from_onnx("Mean")
def mean_of_inputs(call: Call) -> Tensor:
    """the mean of all inputs"""
    found = call.tensors()
    total = found[0]
    for each in found[1:]:
        total = total + each
    return total / len(found)


def _one(name: str, function: Callable[[Tensor], Tensor], on_number: Callable[[Any], Any] | None = None) -> Operator:
    def read(call: Call) -> Tensor:
        return function(call.tensor())

    read.__doc__ = f"torch's {getattr(function, '__name__', name)}"
    return from_onnx(name, on_known=_on_numbers(on_number) if on_number else None)(read)


ONES = [
    _one("Abs", torch.abs, abs),
    _one("Acos", torch.acos),
    _one("Acosh", torch.acosh),
    _one("Asin", torch.asin),
    _one("Asinh", torch.asinh),
    _one("Atan", torch.atan),
    _one("Atanh", torch.atanh),
    _one("BitwiseNot", torch.bitwise_not),
    _one("Ceil", torch.ceil, lambda x: x if isinstance(x, int | torch.SymInt) else float(math.ceil(x))),
    _one("Cos", torch.cos),
    _one("Cosh", torch.cosh),
    _one("Erf", torch.erf),
    _one("Exp", torch.exp),
    _one("Floor", torch.floor, lambda x: x if isinstance(x, int | torch.SymInt) else float(math.floor(x))),
    _one("HardSwish", F.hardswish),
    _one("Identity", lambda x: x, lambda x: x),
    _one("IsNaN", torch.isnan),
    _one("Log", torch.log),
    _one("Mish", F.mish),
    _one("Neg", torch.neg, operator.neg),
    _one("Not", torch.logical_not, operator.not_),
    _one("Reciprocal", torch.reciprocal, lambda x: 1.0 / x),
    _one("Relu", torch.relu),
    _one("Round", torch.round),
    _one("Sigmoid", torch.sigmoid),
    _one("Sign", torch.sign, lambda x: int(x > 0) - int(x < 0)),
    _one("Sin", torch.sin),
    _one("Sinh", torch.sinh),
    _one("Softplus", F.softplus),
    _one("Softsign", F.softsign),
    _one("Sqrt", torch.sqrt, lambda x: torch.sym_sqrt(x) if isinstance(x, torch.SymFloat) else float(x) ** 0.5),
    _one("Tan", torch.tan),
    _one("Tanh", torch.tanh),
    _one("com.microsoft.QuickGelu", lambda x: x * torch.sigmoid(1.702 * x)),
    _one("com.microsoft.FastGelu", lambda x: F.gelu(x, approximate="tanh")),
]


@from_onnx("Gelu", "com.microsoft.Gelu")
def gelu(call: Call) -> Tensor:
    """torch's gelu, exact or by tanh"""
    return F.gelu(call.tensor(), approximate=call.get("approximate", "none"))


@from_onnx("com.microsoft.BiasGelu")
def bias_gelu(call: Call) -> Tensor:
    """gelu(x + bias)"""
    return F.gelu(call.tensor(0) + call.tensor(1))


@from_onnx("Swish")
def swish(call: Call) -> Tensor:
    """x · sigmoid(alpha · x)"""
    x, alpha = call.tensor(), call.get("alpha", 1.0)
    return F.silu(x) if alpha == 1 else x * torch.sigmoid(alpha * x)


@from_onnx("LeakyRelu")
def leaky_relu(call: Call) -> Tensor:
    """torch's leaky_relu"""
    return F.leaky_relu(call.tensor(), call.get("alpha", 0.01))


@from_onnx("Elu")
def elu(call: Call) -> Tensor:
    """torch's elu"""
    return F.elu(call.tensor(), call.get("alpha", 1.0))


@from_onnx("Celu")
def celu(call: Call) -> Tensor:
    """torch's celu"""
    return F.celu(call.tensor(), call.get("alpha", 1.0))


@from_onnx("Selu")
def selu(call: Call) -> Any:
    """gamma · (x where positive, alpha · (exp(x) - 1) elsewhere)"""
    alpha, gamma = call.get("alpha", 1.6732632423543772), call.get("gamma", 1.0507009873554805)
    if abs(alpha - 1.6732632423543772) < 1e-5 and abs(gamma - 1.0507009873554805) < 1e-5:
        return F.selu(call.tensor())
    return gamma * F.elu(call.tensor(), alpha)


@from_onnx("HardSigmoid")
def hard_sigmoid(call: Call) -> Tensor:
    """min(max(alpha · x + beta, 0), 1)"""
    alpha, beta = call.get("alpha", 0.2), call.get("beta", 0.5)
    if abs(alpha - 1 / 6) < 1e-6 and beta == 0.5:
        return F.hardsigmoid(call.tensor())
    return torch.clamp(alpha * call.tensor() + beta, 0, 1)


@from_onnx("ThresholdedRelu")
def thresholded_relu(call: Call) -> Tensor:
    """x where it is above alpha, 0 elsewhere"""
    return F.threshold(call.tensor(), call.get("alpha", 1.0), 0.0)


@from_onnx("Shrink")
def shrink(call: Call) -> Tensor:
    """x moved towards 0 by bias, 0 within lambd"""
    x, bias, lambd = call.tensor(), call.get("bias", 0.0), call.get("lambd", 0.5)
    return torch.where(x < -lambd, x + bias, torch.where(x > lambd, x - bias, torch.zeros_like(x)))


@from_onnx("PRelu")
def prelu(call: Call) -> Tensor:
    """x where positive, slope · x elsewhere; torch's prelu where the slope is one a channel"""
    x, slope = call.tensor(0), call.tensor(1)
    if x.ndim > 1 and slope.numel() == x.shape[1] == slope.shape[0] and slope.ndim == x.ndim - 1:
        return F.prelu(x, slope.reshape(-1))
    return torch.where(x > 0, x, slope * x)


@from_onnx("Clip")
def clip(call: Call) -> Tensor:
    """torch's clamp, by bounds that are attributes, inputs or neither"""
    x = call.tensor()
    low = call.operand(1) if call.has(1) else call.get("min")
    high = call.operand(2) if call.has(2) else call.get("max")
    if low is None and high is None:
        return x
    if isinstance(low, Tensor) or isinstance(high, Tensor):
        x = x if low is None else torch.maximum(x, torch.as_tensor(low, dtype=x.dtype))
        return x if high is None else torch.minimum(x, torch.as_tensor(high, dtype=x.dtype))
    if low == 0 and high == 6:
        return F.relu6(x)
    return torch.clamp(x, low, high)


REAL: Any = torch.sym_float
WHOLE: Any = torch.sym_int


def _cast_numbers(values: np.ndarray[Any, Any], dtype: torch.dtype) -> Known:
    made: Any = REAL if dtype.is_floating_point else bool if dtype is torch.bool else WHOLE
    return known(np.frompyfunc(made, 1, 1)(values), dtype)


def _cast_known(call: Call) -> Known:
    return _cast_numbers(call.inputs[0].values, dtype_of(call.get("to")))


@from_onnx("Cast", on_known=_cast_known)
def cast(call: Call) -> Tensor:
    """to another dtype"""
    return call.tensor().to(dtype_of(call.get("to")))


@from_onnx("CastLike", on_known=lambda call: _cast_numbers(call.inputs[0].values, call.inputs[1].dtype))
def cast_like(call: Call) -> Tensor:
    """to the dtype of another tensor"""
    return call.tensor(0).to(call.tensor(1).dtype)


def _where_known(call: Call) -> Known:
    chosen = np.frompyfunc(lambda c, a, b: a if c else b, 3, 1)
    return known(chosen(*(value.values for value in call.inputs)), call.inputs[1].dtype)


@from_onnx("Where", on_known=_where_known)
def where(call: Call) -> Tensor:
    """torch's where"""
    dtype = next(v.dtype for v in call.inputs[1:3] if v is not None)
    one, other = (torch.tensor(v, dtype=dtype) if not isinstance(v, Tensor) else v for v in map(call.operand, (1, 2)))
    return torch.where(call.tensor(0), one, other)


@from_onnx("IsInf")
def is_inf(call: Call) -> Tensor:
    """infinite, of the signs that are asked for"""
    x, above, below = call.tensor(), call.get("detect_positive", 1), call.get("detect_negative", 1)
    if not above and not below:
        return torch.zeros_like(x, dtype=torch.bool)
    return torch.isinf(x) if above and below else torch.isposinf(x) if above else torch.isneginf(x)


@from_onnx("BitShift")
def bit_shift(call: Call) -> Tensor:
    """bits to the left or to the right"""
    a, b = call.tensor(0), call.tensor(1)
    return a << b if call.get("direction") == "LEFT" else a >> b


@from_onnx("Dropout", "com.microsoft.Dropout")
def dropout(call: Call) -> tuple[Tensor, ...]:
    """x as it is: nothing is dropped in a model that is used"""
    x = call.tensor()
    if call.has(2) and call.number(2):
        raise call.refuse("it is in training mode", "export the model in evaluation mode")
    return (x, torch.ones_like(x, dtype=torch.bool)) if len(call.outputs) > 1 else (x,)


OPERATORS = [
    *PAIRS, *JOINED, *ONES, modulo, mean_of_inputs, gelu, bias_gelu, swish, leaky_relu, elu, celu, selu, hard_sigmoid,
    thresholded_relu, shrink, prelu, clip, cast, cast_like, where, is_inf, bit_shift, dropout,
]  # fmt: skip
