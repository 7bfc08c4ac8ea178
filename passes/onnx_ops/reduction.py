"""Sums, means and the like over axes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxmerge.from_onnx.call import Call, Operator, from_onnx, known

ON_NUMBERS: Mapping[str, Callable[[Any, Any], Any]] = {
    "ReduceProd": operator.mul, "ReduceSum": operator.add, "ReduceMax": torch.sym_max, "ReduceMin": torch.sym_min,
}  # fmt: skip
"""What makes one number of two that are known, as sizes are."""
Reduce = Callable[[Tensor, list[int], bool], Tensor]


def _reduced(name: str, function: Reduce) -> Operator:
    def read(call: Call) -> Tensor:
        x, axes, keep = call.tensor(), call.sizes("axes", 1), bool(call.get("keepdims", 1))
        if not axes:
            if axes is not None and call.get("noop_with_empty_axes", 0):
                return function(x[..., None], [x.ndim], False)
            if axes is None and call.get("noop_with_empty_axes", 0):
                return function(x[..., None], [x.ndim], False)
            axes = list(range(x.ndim))
        return function(x, [int(a) % x.ndim for a in axes], keep) if x.ndim else x

    def on_known(call: Call) -> Any:
        [first, *_] = call.inputs
        if name not in ON_NUMBERS or first.values.ndim != 1 or not len(first.values):
            return NotImplemented
        total = functools.reduce(ON_NUMBERS[name], first.values)
        return known([total] if call.get("keepdims", 1) else total, first.dtype)

    read.__doc__ = f"{name} by torch"
    return from_onnx(name, on_known=on_known)(read)


def _product(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    for axis in sorted(axes, reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _mean(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    count = int(np.prod([x.shape[a] for a in axes]))
    return torch.div(x.sum(axes, keepdim=keep), count, rounding_mode="trunc").to(x.dtype)


def _sum(x: Tensor, axes: list[int], keep: bool) -> Tensor:
    whole = not (x.is_floating_point() or x.is_complex())  # torch adds up whole numbers in 64 bits
    return x.sum(axes, keepdim=keep, dtype=x.dtype if whole else None)


def _best(name: str, function: Callable[..., Tensor]) -> Operator:
    def read(call: Call) -> Any:
        x, axis, keep = call.tensor(), call.get("axis", 0), bool(call.get("keepdims", 1))
        if call.get("select_last_index", 0):
            return x.shape[axis] - 1 - function(x.flip(axis), axis, keepdim=keep)
        return function(x, axis, keepdim=keep)

    read.__doc__ = f"torch's {function.__name__}"
    return from_onnx(name)(read)


@from_onnx("CumSum")
def cumulative_sum(call: Call) -> Tensor:
    """torch's cumsum"""
    x, axis = call.tensor(0), int(call.number(1))
    x = x.flip(axis) if call.get("reverse", 0) else x
    total = x.cumsum(axis, dtype=x.dtype)
    total = total - x if call.get("exclusive", 0) else total
    return total.flip(axis) if call.get("reverse", 0) else total


@from_onnx("TopK")
def top_k(call: Call) -> tuple[Tensor, Tensor]:
    """torch's topk"""
    k = call.number(1) if call.has(1) else call.get("k")
    largest, in_order = bool(call.get("largest", 1)), bool(call.get("sorted", 1))
    found = torch.topk(call.tensor(), k, call.get("axis", -1), largest, in_order)
    return found.values, found.indices


@from_onnx("DFT")
def fourier(call: Call) -> Tensor:
    """torch's fft, real and imaginary parts along the last axis"""
    x, length = call.tensor(0), call.number(1)
    axis = int(call.number(2, -2)) if call.version >= 20 else call.get("axis", 1)
    axis = axis % x.ndim
    values = torch.view_as_complex(x.contiguous()) if x.shape[-1] == 2 else x[..., 0]
    if call.get("onesided", 0):
        if call.get("inverse", 0) or values.is_complex():
            raise call.refuse("it transforms one side back")
        return torch.view_as_real(torch.fft.rfft(values, length, axis))
    return torch.view_as_real((torch.fft.ifft if call.get("inverse", 0) else torch.fft.fft)(values, length, axis))


OPERATORS = [
    _reduced("ReduceSum", _sum),
    _reduced("ReduceMean", _mean),
    _reduced("ReduceMax", lambda x, axes, keep: x.amax(axes, keepdim=keep)),
    _reduced("ReduceMin", lambda x, axes, keep: x.amin(axes, keepdim=keep)),
    _reduced("ReduceProd", _product),
    _reduced("ReduceL1", lambda x, axes, keep: x.abs().sum(axes, keepdim=keep, dtype=x.dtype)),
    _reduced("ReduceL2", lambda x, axes, keep: x.square().sum(axes, keepdim=keep).sqrt()),
    _reduced("ReduceSumSquare", lambda x, axes, keep: x.square().sum(axes, keepdim=keep, dtype=x.dtype)),
    _reduced("ReduceLogSum", lambda x, axes, keep: x.sum(axes, keepdim=keep).log()),
    _reduced("ReduceLogSumExp", lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep)),
    _best("ArgMax", torch.argmax),
    _best("ArgMin", torch.argmin),
    cumulative_sum,
    top_k,
    fourier,
]
