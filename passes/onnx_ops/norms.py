"""Norms, and functions over an axis."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxmerge.from_onnx.call import Call, from_onnx


@from_onnx("BatchNormalization", statistics=(3, 4))
def batch_norm(call: Call) -> Tensor:
    """torch's batch_norm with the statistics that were kept"""
    if call.get("training_mode", 0):
        raise call.refuse("it is in training mode", "export the model in evaluation mode")
    x, scale, shift, mean, variance = (call.tensor(i) for i in range(5))
    return F.batch_norm(x, mean, variance, scale, shift, False, 0.0, call.get("epsilon", 1e-5))


@from_onnx("InstanceNormalization")
def instance_norm(call: Call) -> Tensor:
    """torch's instance_norm"""
    x, scale, shift = (call.tensor(i) for i in range(3))
    return F.instance_norm(x, weight=scale, bias=shift, eps=call.get("epsilon", 1e-5))


@from_onnx("GroupNormalization")
def group_norm(call: Call) -> Tensor:
    """torch's group_norm"""
    x, scale, shift, groups = call.tensor(0), call.tensor(1), call.tensor(2), call.get("num_groups")
    if scale.shape[0] != x.shape[1]:  # operator set 18: one scale a group
        each = x.shape[1] // groups
        scale, shift = scale.repeat_interleave(each), shift.repeat_interleave(each)
    return F.group_norm(x, groups, scale, shift, call.get("epsilon", 1e-5))


@from_onnx("LayerNormalization")
def layer_norm(call: Call) -> Any:
    """torch's layer_norm over the last axes"""
    x, scale, shift = call.tensor(0), call.tensor(1), call.given(2)
    if any(call.outputs[1:]):
        raise call.refuse("it also gives its mean")
    axis = call.get("axis", -1) % x.ndim
    sizes = list(x.shape[axis:])
    scale = scale.expand(sizes) if list(scale.shape) != sizes else scale
    shift = shift.expand(sizes) if shift is not None and list(shift.shape) != sizes else shift
    return F.layer_norm(x, sizes, scale, shift, call.get("epsilon", 1e-5))


@from_onnx("RMSNormalization", "SimplifiedLayerNormalization", "com.microsoft.SimplifiedLayerNormalization")
def rms_norm(call: Call) -> Any:
    """torch's rms_norm over the last axes"""
    x, scale = call.tensor(0), call.tensor(1)
    axis = call.get("axis", -1) % x.ndim
    return F.rms_norm(x, list(x.shape[axis:]), scale, call.get("epsilon", 1e-5))


@from_onnx("com.microsoft.SkipLayerNormalization", "com.microsoft.SkipSimplifiedLayerNormalization")
def skip_layer_norm(call: Call) -> Any:
    """norm(x + skip + bias), and that sum"""
    x = call.tensor(0) + call.tensor(1)
    simple = "Simplified" in call.operator
    scale, bias = call.tensor(2), call.given(3 if simple else 4)
    x = x if bias is None else x + bias
    sizes, epsilon = [x.shape[-1]], call.get("epsilon", 1e-12)
    if any(call.outputs[1:3]):
        raise call.refuse("it also gives its mean")
    made = F.rms_norm(x, sizes, scale, epsilon) if simple else F.layer_norm(x, sizes, scale, call.given(3), epsilon)
    return made, None, None, x


@from_onnx("Softmax", "LogSoftmax", "Hardmax")
def softmax(call: Call) -> Tensor:
    """torch's softmax and log_softmax"""
    x = call.tensor()
    axis = call.get("axis", -1 if call.version >= 13 else 1) % max(x.ndim, 1)
    shape = x.shape
    if call.version < 13 and axis != x.ndim - 1:  # all axes from this one on, as one
        x, axis = x.flatten(axis), axis
    if call.operator == "Softmax":
        return torch.softmax(x, axis).reshape(shape)
    if call.operator == "LogSoftmax":
        return torch.log_softmax(x, axis).reshape(shape)
    places = torch.argmax(x, axis, keepdim=True)
    return torch.zeros_like(x).scatter(axis, places, 1.0).reshape(shape)


@from_onnx("LpNormalization")
def lp_normalization(call: Call) -> Any:
    """x by its norm"""
    x, p, axis = call.tensor(), call.get("p", 2), call.get("axis", -1)
    return x / torch.linalg.vector_norm(x, p, axis, keepdim=True)


@from_onnx("MeanVarianceNormalization")
def mean_variance_norm(call: Call) -> Tensor:
    """x less its mean by its deviation"""
    x, axes = call.tensor(), list(call.get("axes", [0, 2, 3]))
    return (x - x.mean(axes, keepdim=True)) / (x.std(axes, correction=0, keepdim=True) + 1e-9)


@from_onnx("LRN")
def local_response_norm(call: Call) -> Tensor:
    """torch's local_response_norm"""
    size, alpha, beta, bias = call.get("size"), call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    return F.local_response_norm(call.tensor(), size, alpha, beta, bias)


OPERATORS = [
    batch_norm, instance_norm, group_norm, layer_norm, rms_norm, skip_layer_norm, softmax, lp_normalization,
    mean_variance_norm, local_response_norm,
]  # fmt: skip
