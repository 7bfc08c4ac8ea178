"""Shapes, and operators that move numbers without changing them; sizes stay symbols while a model is traced."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fxmerge.from_onnx.call import Call, Known, from_onnx, known
from fxmerge.from_onnx.graph import dtype_of

FEW = 64
"""A filled tensor of at most as many numbers is known."""


def _array(function: Callable[[np.ndarray[Any, Any], Call], Any]) -> Callable[[Call], Any]:
    """The function of known numbers and the call, its results known."""

    def run(call: Call) -> Any:
        first = call.inputs[0]
        found = function(first.values, call)
        if found is NotImplemented:
            return found
        if isinstance(found, tuple):
            return tuple(known(np.asarray(each, dtype=object), first.dtype) for each in found)
        return known(np.asarray(found, dtype=object), first.dtype)

    return run


def _shape_of(value: Any) -> list[Any]:
    return list(value.values.shape if isinstance(value, Known) else value.shape)


def _shape(call: Call) -> Known:
    sizes = _shape_of(call.inputs[0])
    return known(sizes[call.get("start", 0) : call.get("end", len(sizes))])


@from_onnx("Shape", on_known=_shape)
def shape(call: Call) -> Known:
    """sizes, symbols where they stay open"""
    return _shape(call)


@from_onnx("Size")
def size(call: Call) -> Known:
    """how many numbers there are"""
    total = 1
    for each in _shape_of(call.inputs[0]):
        total = total * each
    return known(total)


def _reshaped(values: np.ndarray[Any, Any], call: Call) -> Any:
    wanted = call.numbers(1)
    if not all(isinstance(n, int) for n in wanted) or 0 in wanted:
        return NotImplemented
    return values.reshape(wanted)


@from_onnx("Reshape", on_known=_array(_reshaped))
def reshape(call: Call) -> Tensor:
    """torch's reshape; 0 is the size that was there"""
    x = call.tensor()
    wanted = call.numbers(1)
    if not call.get("allowzero", 0):
        wanted = [x.shape[i] if isinstance(n, int) and n == 0 else n for i, n in enumerate(wanted)]
    return x.reshape(wanted)


@from_onnx("Flatten")
def flatten(call: Call) -> Tensor:
    """all axes before one as one, all from it on as one"""
    x = call.tensor()
    axis = call.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    if axis == 0:
        return x.reshape(1, -1)
    if axis == x.ndim:
        return x.reshape(-1, 1)
    x = x.flatten(axis) if axis < x.ndim - 1 else x
    return x.flatten(0, axis - 1) if axis > 1 else x


def _squeezed(values: np.ndarray[Any, Any], call: Call) -> Any:
    axes = call.sizes("axes", 1)
    return values.squeeze(None if axes is None else tuple(axes))


@from_onnx("Squeeze", on_known=_array(_squeezed))
def squeeze(call: Call) -> Tensor:
    """torch's squeeze"""
    axes = call.sizes("axes", 1)
    return call.tensor().squeeze() if axes is None else call.tensor().squeeze(tuple(axes))


def _unsqueezed(values: np.ndarray[Any, Any], call: Call) -> Any:
    return np.expand_dims(values, tuple(call.sizes("axes", 1)))


@from_onnx("Unsqueeze", on_known=_array(_unsqueezed))
def unsqueeze(call: Call) -> Tensor:
    """torch's unsqueeze, axis by axis"""
    x = call.tensor()
    axes = call.sizes("axes", 1)
    for axis in sorted(axis % (x.ndim + len(axes)) for axis in axes):
        x = x.unsqueeze(axis)
    return x


@from_onnx("Transpose", on_known=_array(lambda values, call: values.transpose(call.get("perm"))))
def transpose(call: Call) -> Tensor:
    """torch's permute"""
    x = call.tensor()
    order = call.get("perm") or list(range(x.ndim))[::-1]
    return x.permute(list(order))


def _joined(call: Call) -> Any:
    values = [each.values for each in call.inputs]
    return known(np.concatenate(values, call.get("axis")), call.inputs[0].dtype)


@from_onnx("Concat", on_known=_joined)
def concat(call: Call) -> Tensor:
    """torch's cat"""
    return torch.cat(call.tensors(), call.get("axis"))


def _cut(values: np.ndarray[Any, Any], call: Call) -> Any:
    places = _parts(call, values.shape[call.get("axis", 0)])
    return tuple(np.split(values, np.cumsum(places)[:-1], call.get("axis", 0)))


def _parts(call: Call, total: Any) -> list[Any]:
    """How large each part of a split is."""
    given = call.sizes("split", 1)
    if given is not None:
        return list(given)
    count = call.get("num_outputs") or len(call.outputs)
    each = (total + count - 1) // count
    return [each] * (count - 1) + [total - each * (count - 1)]


@from_onnx("Split", on_known=_array(_cut))
def split(call: Call) -> tuple[Tensor, ...]:
    """torch's split"""
    x, axis = call.tensor(), call.get("axis", 0)
    return torch.split(x, _parts(call, x.shape[axis]), axis)


def _steps(call: Call, axes: int) -> list[tuple[int, Any, Any, int]]:
    """(axis, first, end, step) of a slice."""
    starts, ends = call.sizes("starts", 1), call.sizes("ends", 2)
    which = call.sizes("axes", 3) or list(range(len(starts)))
    steps = call.numbers(4) if call.has(4) else [1] * len(starts)
    return [(int(a) % axes, s, e, int(k)) for a, s, e, k in zip(which, starts, ends, steps, strict=True)]


def _sliced(values: np.ndarray[Any, Any], call: Call) -> Any:
    index: list[Any] = [slice(None)] * values.ndim
    for axis, start, end, step in _steps(call, values.ndim):
        if not (isinstance(start, int) and isinstance(end, int)):
            return NotImplemented
        if step < 0 and end < -values.shape[axis]:
            end = None
        index[axis] = slice(start, end, step)
    return values[tuple(index)]


@from_onnx("Slice", on_known=_array(_sliced))
def slices(call: Call) -> Tensor:
    """torch's slices; flipped where the step is backwards"""
    x = call.tensor()
    for axis, start, end, step in _steps(call, x.ndim):
        if step < 0:
            total = x.shape[axis]
            start = start + total if start < 0 else min(start, total - 1)
            end = -1 if end < -total else end + total if end < 0 else end
            x = x.flip(axis)
            start, end, step = total - 1 - start, total - 1 - end, -step
        x = x[(slice(None),) * axis + (slice(start, end, step),)]
    return x


def _repeated(values: np.ndarray[Any, Any], call: Call) -> Any:
    wanted = call.numbers(1)
    if not all(isinstance(n, int) for n in wanted):
        return NotImplemented
    return values * np.ones(wanted, dtype=int) if values.size * max(int(np.prod(wanted)), 1) <= FEW else NotImplemented


@from_onnx("Expand", on_known=_array(_repeated))
def expand(call: Call) -> Tensor:
    """torch's expand; 1 is the size that was there"""
    x = call.tensor()
    wanted = call.numbers(1)
    x = x[(None,) * max(len(wanted) - x.ndim, 0)]
    wanted = [*x.shape[: x.ndim - len(wanted)], *wanted]
    sizes = [-1 if isinstance(n, int) and n == 1 else n for n in wanted]
    here = [
        n if isinstance(h, int) and h == 1 else -1 if isinstance(n, int) and n == -1 else h
        for h, n in zip(x.shape, sizes, strict=True)
    ]
    return x.expand(here)


def _tiled(values: np.ndarray[Any, Any], call: Call) -> Any:
    times = call.numbers(1)
    if not all(isinstance(n, int) for n in times) or values.size * math.prod(times) > FEW:
        return NotImplemented
    return np.tile(values, times)


@from_onnx("Tile", on_known=_array(_tiled))
def tile(call: Call) -> Tensor:
    """torch's repeat"""
    return call.tensor().repeat(call.numbers(1))


@from_onnx("Pad")
def pad(call: Call) -> Tensor:
    """torch's pad"""
    x = call.tensor()
    pads = call.sizes("pads", 1)
    axes = [int(a) % x.ndim for a in call.numbers(3)] if call.has(3) else list(range(x.ndim))
    value = call.number(2, 0.0) if call.has(2) else call.get("value", 0.0)
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        call.get("mode", "constant")
    ]
    before, after = dict(zip(axes, pads, strict=False)), dict(zip(axes, pads[len(axes) :], strict=True))
    moved = [axis for axis in range(x.ndim) if not _none(before.get(axis, 0)) or not _none(after.get(axis, 0))]
    if not moved:
        return x
    if mode == "constant":
        flat = [n for axis in range(x.ndim - 1, min(moved) - 1, -1) for n in (before.get(axis, 0), after.get(axis, 0))]
        return F.pad(x, flat, value=value)
    for axis in moved:  # torch pads the last axes alone by anything but a constant
        sides = [before.get(axis, 0), after.get(axis, 0)]
        rows = x.movedim(axis, -1)
        x = F.pad(rows.reshape(1, -1, rows.shape[-1]), sides, mode=mode).reshape(*rows.shape[:-1], -1).movedim(-1, axis)
    return x


def _none(count: Any) -> bool:
    return isinstance(count, int) and count == 0


def _filled(call: Call) -> Any:
    sizes = call.numbers(0)
    value = call.get("value")
    dtype = torch.float32 if value is None else value.dtype
    fill = 0.0 if value is None else value.single
    if len(sizes) <= 1 and all(isinstance(n, int) and n <= FEW for n in sizes):
        return known([fill] * sizes[0] if sizes else fill, dtype)
    return torch.full([int(n) if isinstance(n, int) else n for n in sizes], fill, dtype=dtype)


@from_onnx("ConstantOfShape", on_known=_filled)
def constant_of_shape(call: Call) -> Any:
    """torch's full"""
    return _filled(call)


@from_onnx("EyeLike")
def eye_like(call: Call) -> Any:
    """ones on a diagonal"""
    x = call.tensor()
    dtype = dtype_of(call.get("dtype")) if call.get("dtype") else x.dtype
    rows, columns = torch.arange(x.shape[0])[:, None], torch.arange(x.shape[1])[None]
    return (columns - rows == call.get("k", 0)).to(dtype)


def _counted(call: Call) -> Any:
    start, end, step = (call.number(i) for i in range(3))
    if isinstance(start, int) and isinstance(end, int) and isinstance(step, int) and abs(end - start) <= 8 * abs(step):
        return known(list(range(start, end, step)), call.inputs[0].dtype)
    return torch.arange(start, end, step, dtype=call.inputs[0].dtype)


@from_onnx("Range", on_known=_counted)
def arange(call: Call) -> Any:
    """torch's arange"""
    return _counted(call)


@from_onnx("Trilu")
def triangle(call: Call) -> Tensor:
    """torch's triu and tril"""
    k = call.number(1, 0)
    return torch.triu(call.tensor(), k) if call.get("upper", 1) else torch.tril(call.tensor(), k)


OPERATORS = [
    shape, size, reshape, flatten, squeeze, unsqueeze, transpose, concat, split, slices, expand, tile, pad,
    constant_of_shape, eye_like, arange, triangle,
]  # fmt: skip
