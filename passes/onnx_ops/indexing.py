"""Operators that choose by index."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fxmerge.from_onnx.call import Call, Known, from_onnx, known


def _gathered(call: Call) -> Any:
    values, places = call.inputs[0].values, call.inputs[1].values
    if not all(isinstance(n, int) for n in places.reshape(-1)):
        return NotImplemented
    found = np.take(values, places.astype(np.int64), call.get("axis", 0))
    return known(found if isinstance(found, np.ndarray) else [found][0], call.inputs[0].dtype)


@from_onnx("Gather", on_known=_gathered)
def gather(call: Call) -> Tensor:
    """one index: torch's select; tokens in a table: torch's embedding; else torch's index_select"""
    x, axis = call.tensor(0), call.get("axis", 0)
    axis = axis + x.ndim if axis < 0 else axis
    place: Any = call.inputs[1]
    if isinstance(place, Known) and place.values.ndim == 0:
        return x.select(axis, place.single)
    place = call.tensor(1)
    place = place.long()
    if axis == 0 and x.ndim == 2 and x.is_floating_point() and not _is_constant(call, 1):
        return F.embedding(torch.where(place < 0, place + x.shape[0], place) if _may_be_negative(call) else place, x)
    place = torch.where(place < 0, place + x.shape[axis], place) if _negative(call) else place
    if place.ndim == 1:
        return x.index_select(axis, place)
    return x[(slice(None),) * axis + (place,)]


def _is_constant(call: Call, place: int) -> bool:
    return not isinstance(call.inputs[place], Tensor)


def _may_be_negative(call: Call) -> bool:
    return False  # tokens count from 0


def _negative(call: Call) -> bool:
    """Whether constant indices count from the end."""
    return _is_constant(call, 1) and any(isinstance(n, int) and n < 0 for n in call.numbers(1))


@from_onnx("GatherElements")
def gather_elements(call: Call) -> Tensor:
    """torch's gather"""
    x, axis = call.tensor(0), call.get("axis", 0)
    place = call.tensor(1).long()
    return torch.gather(x, axis, torch.where(place < 0, place + x.shape[axis], place))


@from_onnx("GatherND")
def gather_nd(call: Call) -> Tensor:
    """x[indices] by the indices' last axis"""
    x, places, batch = call.tensor(0), call.tensor(1).long(), call.get("batch_dims", 0)
    index: list[Any] = []
    for axis in range(batch):
        shape = [1] * (places.ndim - 1)
        shape[axis] = -1
        index.append(torch.arange(x.shape[axis]).reshape(shape))
    index += list(places.unbind(-1))
    return x[tuple(index)]


@from_onnx("ScatterElements", "Scatter")
def scatter_elements(call: Call) -> Tensor:
    """torch's scatter and scatter_reduce"""
    x, places, values = call.tensor(0), call.tensor(1).long(), call.tensor(2)
    axis, how = call.get("axis", 0), call.get("reduction", "none")
    places = torch.where(places < 0, places + x.shape[axis], places)
    if how == "none":
        return x.scatter(axis, places, values)
    names = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
    return x.scatter_reduce(axis, places, values, names[how])


def _put(call: Call) -> Any:
    values, places, updates = (each.values for each in call.inputs)
    if call.get("reduction", "none") != "none" or not all(isinstance(n, int) for n in places.reshape(-1)):
        return NotImplemented
    found = values.copy()
    found[tuple(np.moveaxis(places.astype(np.int64), -1, 0))] = updates
    return known(found, call.inputs[0].dtype)


@from_onnx("ScatterND", on_known=_put)
def scatter_nd(call: Call) -> Tensor:
    """torch's index_put"""
    x, places, values = call.tensor(0), call.tensor(1).long(), call.tensor(2)
    how = call.get("reduction", "none")
    if how not in ("none", "add"):
        raise call.refuse(f"it scatters by {how}")
    return x.index_put(tuple(places.unbind(-1)), values, accumulate=how == "add")


@from_onnx("OneHot")
def one_hot(call: Call) -> Tensor:
    """the second value at the index, the first elsewhere"""
    places, depth, axis = call.tensor(0), call.number(1), call.get("axis", -1)
    values = call.tensor(2)
    places = places.long()
    places = torch.where(places < 0, places + depth, places)
    axis = axis + places.ndim + 1 if axis < 0 else axis
    shape = [1] * (places.ndim + 1)
    shape[axis] = -1
    hit = places.unsqueeze(axis) == torch.arange(depth).reshape(shape)
    return torch.where(hit, values[1], values[0])


@from_onnx("NonZero")
def non_zero(call: Call) -> Any:
    """where a constant is not zero"""
    return known(np.array(np.nonzero(call.known(0).values.astype(bool))).astype(object))


OPERATORS = [gather, gather_elements, gather_nd, scatter_elements, scatter_nd, one_hot, non_zero]
