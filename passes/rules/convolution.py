"""Convolutions, pooling and resizing: channels couple, windows and places tolerate nothing."""

from __future__ import annotations

from fxmerge.coupling import Call, couples

LAW = "input * weight + bias"


@couples(
    "aten.conv1d.default", "aten.conv2d.default", "aten.conv3d.default",
    "aten.conv1d.padding", "aten.conv2d.padding", "aten.conv3d.padding", "aten.convolution.default",
)  # fmt: skip
def convolution(call: Call) -> tuple[str, str]:
    if call["transposed"]:
        return transposed(call)
    window = call.shape("weight")[2:]
    batch = "n " if call.rank("input") == len(window) + 2 else ""
    ins, outs = ("i", "o") if call["groups"] == 1 else ("(g i)", "(g o)")
    places = _places(call, window)
    return f"{batch}{ins} {places}, {outs} i {'_ ' * len(window)}, {outs} -> {batch}{outs} {places}", LAW


@couples("aten.conv_transpose1d.default", "aten.conv_transpose2d.input", "aten.conv_transpose3d.input")
def transposed_convolution(call: Call) -> tuple[str, str]:
    return transposed(call)


def transposed(call: Call) -> tuple[str, str]:
    """Signature of a transposed convolution: the weight has the inputs first."""
    window = call.shape("weight")[2:]
    batch = "n " if call.rank("input") == len(window) + 2 else ""
    ins, outs = ("i", "o") if call["groups"] == 1 else ("(g i)", "(g o)")
    places = "_ " * len(window)
    return f"{batch}{ins} {places}, {ins} o {places}, {outs} -> {batch}{outs} {places}", LAW


def _places(call: Call, window: tuple[int, ...]) -> str:
    """Tokens of the spatial axes: a window of one at every place leaves them as they are."""
    plain = all(size == 1 for size in window) and call.shape("input")[-len(window) :] == call.result[-len(window) :]
    return " ".join(f"p{i}" if plain else "_" for i, _ in enumerate(window))


def _pooled(call: Call, places: int) -> str:
    """Signature of an operator on the last `places` axes; what is pooled to one is summed over."""
    name = call.operands[0][0]
    sizes = call.result[-places:]
    given = call.shape(name)[-places:]
    left = [f"p{i}" if new == 1 or new == old else "_" for i, (old, new) in enumerate(zip(given, sizes, strict=True))]
    right = ["1" if new == 1 else "_" for new in sizes]
    return f"... {' '.join(left)} -> ... {' '.join(right)}"


@couples("aten.adaptive_avg_pool1d.default")
def average_pool_1d(call: Call) -> tuple[str, str]:
    return _adaptive(call, 1), "self"


@couples("aten.adaptive_avg_pool2d.default", "aten._adaptive_avg_pool2d.default")
def average_pool_2d(call: Call) -> tuple[str, str]:
    return _adaptive(call, 2), "self"


@couples("aten.adaptive_avg_pool3d.default", "aten._adaptive_avg_pool3d.default")
def average_pool_3d(call: Call) -> tuple[str, str]:
    return _adaptive(call, 3), "self"


def _adaptive(call: Call, places: int) -> str:
    """An adaptive average over everything is a mean, one that changes no size is nothing."""
    old, new = call.shape("self")[-places:], call.result[-places:]
    pairs = list(zip(old, new, strict=True))
    left = " ".join(f"p{i}" if b in (1, a) else "_" for i, (a, b) in enumerate(pairs))
    right = " ".join("1" if b == 1 else f"p{i}" if a == b else "_" for i, (a, b) in enumerate(pairs))
    return f"... {left} -> ... {right}"


def _window(places: int) -> str:
    return f"... {'_ ' * places}-> ... {'_ ' * places}"


pool_1d = couples("aten.avg_pool1d.default", "aten.upsample_linear1d.default", "aten.upsample_nearest1d.default", _window(1), "self")
pool_2d = couples(
    "aten.avg_pool2d", "aten.upsample_nearest2d", "aten.upsample_bilinear2d", "aten.upsample_bicubic2d",
    "aten._upsample_bilinear2d_aa", "aten._upsample_bicubic2d_aa", "aten._upsample_nearest_exact2d",
    _window(2), "self",
)  # fmt: skip
pool_3d = couples("aten.avg_pool3d", "aten.upsample_nearest3d", "aten.upsample_trilinear3d", _window(3), "self")
max_pool_1d = couples("aten.max_pool1d.default", _window(1), "rigid(self)")
max_pool_2d = couples("aten.max_pool2d.default", _window(2), "rigid(self)")
max_pool_3d = couples("aten.max_pool3d.default", _window(3), "rigid(self)")


@couples("aten.max_pool1d_with_indices.default", "aten.max_pool2d_with_indices.default", "aten.max_pool3d_with_indices.default")
def max_pool_with_places(call: Call) -> tuple[str, str]:
    places = len(call["kernel_size"])
    places = call.rank("self") - 2 if places == 1 else places
    return f"{_window(places)}, ... {'_ ' * places}", "rigid(self)"


@couples("aten._weight_norm.default")
def weight_norm(call: Call) -> tuple[str, str]:
    axes = " ".join(f"x{i}" for i in range(call.rank("v")))
    return f"{axes}, {axes} -> {axes}", "rigid(v) * g"
