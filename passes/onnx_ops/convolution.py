"""Convolutions, pooling, and sizes of images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxmerge.from_onnx.call import Call, Operator, from_onnx

CONVOLUTIONS: Any = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
TRANSPOSED: Any = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
MAXIMA: Any = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
MEANS: Any = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _windows(call: Call, x: Tensor, kernel: Sequence[int]) -> tuple[list[int], list[int], list[int], list[int]]:
    """Strides, dilations, and the padding before and after on every axis of the image."""
    axes = len(kernel)
    strides = list(call.get("strides", [1] * axes))
    dilations = list(call.get("dilations", [1] * axes))
    auto = call.get("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        before, after = [], []
        for size, k, s, d in zip(x.shape[2:], kernel, strides, dilations, strict=True):
            whole = d * (k - 1) + 1
            total = whole - s if size % s == 0 else whole - size % s  # a size that stays open is known modulo 1 alone
            total = max(int(total), 0)
            small, large = total // 2, total - total // 2
            before.append(small if auto == "SAME_UPPER" else large)
            after.append(large if auto == "SAME_UPPER" else small)
        return strides, dilations, before, after
    pads = [0] * (2 * axes) if auto == "VALID" else list(call.get("pads", [0] * (2 * axes)))
    return strides, dilations, pads[:axes], pads[axes:]


def padded(x: Tensor, before: Sequence[Any], after: Sequence[Any], value: float = 0.0) -> Tensor:
    """The image with a border."""
    flat = [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


@from_onnx("Conv", "com.microsoft.FusedConv")
def conv(call: Call) -> Tensor:
    """torch's convolution"""
    x, weight = call.tensor(0), call.tensor(1)
    kernel = [int(n) for n in weight.shape[2:]]
    if len(kernel) not in CONVOLUTIONS:
        raise call.refuse(f"it convolves over {len(kernel)} axes")
    strides, dilations, before, after = _windows(call, x, kernel)
    if before != after:
        x, before = padded(x, before, after), [0] * len(kernel)
    result = CONVOLUTIONS[len(kernel)](x, weight, call.given(2), strides, before, dilations, call.get("group", 1))
    activation = call.get("activation", "")
    if activation not in ("", "Relu"):
        raise call.refuse(f"it has the activation {activation}")
    return torch.relu(result) if activation else result


@from_onnx("ConvTranspose")
def conv_transpose(call: Call) -> Tensor:
    """torch's transposed convolution"""
    x, weight = call.tensor(0), call.tensor(1)
    kernel = [int(n) for n in weight.shape[2:]]
    axes = len(kernel)
    strides = list(call.get("strides", [1] * axes))
    dilations = list(call.get("dilations", [1] * axes))
    more = list(call.get("output_padding", [0] * axes))
    pads = list(call.get("pads", [0] * (2 * axes)))
    wanted = call.get("output_shape")
    auto = call.get("auto_pad", "NOTSET")
    if wanted or auto.startswith("SAME"):
        sizes = list(wanted)[-axes:] if wanted else [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
        full = [
            s * (n - 1) + m + (k - 1) * d + 1
            for n, s, m, k, d in zip(x.shape[2:], strides, more, kernel, dilations, strict=True)
        ]
        total = [int(f - w) for f, w in zip(full, sizes, strict=True)]
        half = [t // 2 for t in total]
        rest = [t - h for t, h in zip(total, half, strict=True)]
        pads = [*half, *rest] if auto != "SAME_LOWER" and (wanted is None or auto == "SAME_UPPER") else [*rest, *half]
    before, after = pads[:axes], pads[axes:]
    function = TRANSPOSED[axes]
    if before == after and all(m < max(s, d) for m, s, d in zip(more, strides, dilations, strict=True)):
        return function(x, weight, call.given(2), strides, before, more, call.get("group", 1), dilations)  # type: ignore[no-any-return]
    result = function(x, weight, call.given(2), strides, 0, 0, call.get("group", 1), dilations)
    cut = [-b for b in before], [m - a for m, a in zip(more, after, strict=True)]
    return padded(result, *cut)


@from_onnx("MaxPool")
def max_pool(call: Call) -> Any:
    """torch's max_pool"""
    x, kernel = call.tensor(), list(call.get("kernel_shape"))
    strides, dilations, before, after = _windows(call, x, kernel)
    if len(call.outputs) > 1 and call.outputs[1]:
        raise call.refuse("it also gives where the largest entries are")
    if before != after or any(2 * b > k for b, k in zip(before, kernel, strict=True)):
        low = -float("inf") if x.is_floating_point() else torch.iinfo(x.dtype).min
        x, before = padded(x, before, after, low), [0] * len(kernel)
    return MAXIMA[len(kernel)](x, kernel, strides, before, dilations, bool(call.get("ceil_mode", 0)))


@from_onnx("AveragePool")
def average_pool(call: Call) -> Tensor:
    """torch's avg_pool"""
    x, kernel = call.tensor(), list(call.get("kernel_shape"))
    strides, dilations, before, after = _windows(call, x, kernel)
    ceil, with_border = bool(call.get("ceil_mode", 0)), bool(call.get("count_include_pad", 0))
    plain = all(d == 1 for d in dilations) and before == after
    if plain and all(2 * b <= k for b, k in zip(before, kernel, strict=True)):
        return MEANS[len(kernel)](x, kernel, strides, before, ceil, with_border)  # type: ignore[no-any-return]
    if any(d != 1 for d in dilations) or ceil:
        raise call.refuse("it averages over windows that torch has not")
    mean = MEANS[len(kernel)](padded(x, before, after), kernel, strides)
    if with_border:
        return mean  # type: ignore[no-any-return]
    share = MEANS[len(kernel)](padded(torch.ones_like(x), before, after), kernel, strides)
    return mean / share  # type: ignore[no-any-return]


def _over_image(name: str, what: str) -> Operator:
    def read(call: Call) -> Tensor:
        x = call.tensor()
        axes = list(range(2, x.ndim))
        return x.mean(axes, keepdim=True) if what == "mean" else x.amax(axes, keepdim=True)

    read.__doc__ = f"the {what} over the whole image"
    return from_onnx(name)(read)


@from_onnx("LpPool")
def lp_pool(call: Call) -> Tensor:
    """the p-norm over windows"""
    x, kernel, p = call.tensor(), list(call.get("kernel_shape")), call.get("p", 2)
    strides, dilations, before, after = _windows(call, x, kernel)
    if any(d != 1 for d in dilations) or call.get("ceil_mode", 0):
        raise call.refuse("it sums over windows that torch has not")
    total = 1
    for k in kernel:
        total *= k
    return (MEANS[len(kernel)](padded(x.abs() ** p, before, after), kernel, strides) * total) ** (1 / p)  # type: ignore[no-any-return]


@from_onnx("Resize", "Upsample", settings=(1, 2))
def resize(call: Call) -> Tensor:
    """torch's interpolate"""
    x = call.tensor()
    image = x.ndim - 2
    sizes, scales = _resized(call, x)
    mode, where = call.get("mode", "nearest"), call.get("coordinate_transformation_mode", "half_pixel")
    if call.operator == "Upsample":
        where = "asymmetric"
    if (
        call.get("axes") not in (None, list(range(x.ndim)))
        or call.get("antialias", 0)
        or call.get("exclude_outside", 0)
    ):
        raise call.refuse("it asks for axes, antialias or exclude_outside")
    if (mode in ("linear", "bilinear")) and where in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        name: Any = {1: "linear", 2: "bilinear", 3: "trilinear"}[image]
        return _interpolated(x, sizes, scales, name, where == "align_corners")
    if mode == "cubic" and image == 2 and where in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        if abs(call.get("cubic_coeff_a", -0.75) + 0.75) > 1e-6:
            raise call.refuse("it has another cubic coefficient than torch")
        return _interpolated(x, sizes, scales, "bicubic", where == "align_corners")
    if mode == "nearest":
        near = call.get("nearest_mode", "round_prefer_floor") if call.operator == "Resize" else "floor"
        whole = all(float(s).is_integer() for s in scales or []) if scales else False
        if (where == "asymmetric" and near == "floor") or (whole and where == "half_pixel"):
            return _interpolated(x, sizes, scales, "nearest", None)
        if where == "half_pixel" and near in ("round_prefer_floor", "round_prefer_ceil"):
            return _interpolated(x, sizes, scales, "nearest-exact", None)
    raise call.refuse(f"it resizes by {mode}, {where}, as torch does not")


def _resized(call: Call, x: Tensor) -> tuple[list[Any] | None, list[float] | None]:
    """The sizes of the image, or what they are multiplied by."""
    if call.operator == "Upsample":
        scales = call.get("scales") or call.numbers(1)
        return None, [float(s) for s in scales[2:]]
    if call.has(3):
        return call.numbers(3)[2:], None
    place = 2 if len(call.inputs) > 2 else 1
    values = [float(s) for s in call.numbers(place)]
    if any(s != 1 for s in values[:2]):
        raise call.refuse("it resizes the batch or the channels")
    return None, values[2:]


def _interpolated(x: Tensor, sizes: Any, scales: Any, mode: str, corners: bool | None) -> Tensor:
    if scales is not None:
        return F.interpolate(x, scale_factor=scales, mode=mode, align_corners=corners, recompute_scale_factor=False)
    return F.interpolate(x, size=sizes, mode=mode, align_corners=corners)


@from_onnx("DepthToSpace")
def depth_to_space(call: Call) -> Tensor:
    """blocks of channels become blocks of the image; torch's pixel_shuffle where the channels come first"""
    x, block = call.tensor(), call.get("blocksize")
    if call.get("mode", "DCR") == "CRD":
        return F.pixel_shuffle(x, block)
    rows, channels, height, width = x.shape
    apart = x.reshape(rows, block, block, channels // (block * block), height, width)
    return apart.permute(0, 3, 4, 1, 5, 2).reshape(rows, channels // (block * block), height * block, width * block)


@from_onnx("SpaceToDepth")
def space_to_depth(call: Call) -> Tensor:
    """blocks of the image become blocks of channels"""
    if call.get("mode", "DCR") != "DCR":
        raise call.refuse("it orders channels first")
    x, block = call.tensor(), call.get("blocksize")
    rows, channels, height, width = x.shape
    apart = x.reshape(rows, channels, height // block, block, width // block, block)
    return apart.permute(0, 3, 5, 1, 2, 4).reshape(rows, channels * block * block, height // block, width // block)


@from_onnx("GridSample")
def grid_sample(call: Call) -> Tensor:
    """torch's grid_sample"""
    mode = {"linear": "bilinear", "cubic": "bicubic"}.get(call.get("mode", "bilinear"), call.get("mode", "bilinear"))
    border = call.get("padding_mode", "zeros")
    return F.grid_sample(
        call.tensor(0), call.tensor(1), mode=mode, padding_mode=border, align_corners=bool(call.get("align_corners", 0))
    )


OPERATORS = [
    conv, conv_transpose, max_pool, average_pool, lp_pool, resize, depth_to_space, space_to_depth, grid_sample,
    _over_image("GlobalAveragePool", "mean"), _over_image("GlobalMaxPool", "maximum"),
]  # fmt: skip
