"""Convolutions, pooling and resizing: channels couple, windows and places tolerate nothing."""

from __future__ import annotations

from fxmerge.coupling import Call, couples
from passes.rules.names import aten

LAW = "input * weight + bias"


@couples(
    *aten(
        """
        conv1d.default conv2d.default conv3d.default conv1d.padding conv2d.padding conv3d.padding
        convolution.default
        """
    ),
)
def convolution(call: Call) -> tuple[str, str]:
    if call["transposed"]:
        return transposed(call)
    window = call.shape("weight")[2:]
    batch = "n " if call.rank("input") == len(window) + 2 else ""
    ins, outs = ("i", "o") if call["groups"] == 1 else ("(g i)", "(g o)")
    places = _places(call, window)
    return f"{batch}{ins} {places}, {outs} i {'_ ' * len(window)}, {outs} -> {batch}{outs} {places}", LAW


@couples(*aten("conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input"))
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


@couples("aten.conv_tbc.default")
def conv_tbc(call: Call) -> tuple[str, str]:
    return "_ n i, _ i o, o -> _ n o", "self * weight + bias"


def _law(call: Call, rigid: bool = False) -> str:
    name = call.operands[0][0]
    return f"rigid({name})" if rigid else name


def _everywhere(call: Call, places: int) -> str:
    """Signature of an adaptive pool: over everything it is a reduction, at the size it finds it is nothing."""
    pairs = list(zip(call.shape(call.operands[0][0])[-places:], call.result[-places:], strict=True))
    left = " ".join(f"p{i}" if new in (1, old) else "_" for i, (old, new) in enumerate(pairs))
    right = " ".join("1" if new == 1 else f"p{i}" if new == old else "_" for i, (old, new) in enumerate(pairs))
    return f"... {left} -> ... {right}"


def _digit(call: Call) -> int:
    """Number of places of an operator called "…2d"."""
    return next(int(d) for d in str(call.node.target).rpartition("d")[0][::-1] if d.isdigit())


@couples(
    *aten(
        """
        adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d
        """
    ),
)
def adaptive_average(call: Call) -> tuple[str, str]:
    return _everywhere(call, _digit(call)), _law(call)


@couples(
    *aten(
        """
        avg_pool1d avg_pool2d avg_pool3d upsample_linear1d upsample_nearest1d upsample_nearest2d upsample_bilinear2d
        upsample_bicubic2d _upsample_bilinear2d_aa _upsample_bicubic2d_aa _upsample_nearest_exact1d
        _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_nearest3d upsample_trilinear3d reflection_pad1d
        reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d
        """
    ),
)
def average(call: Call) -> tuple[str, str]:
    """Linear maps over places: averages, resizing, mirrored borders."""
    return _over_places(call, _digit(call)), _law(call)


@couples(*aten("max_pool1d max_pool2d max_pool3d"))
def maximum(call: Call) -> tuple[str, str]:
    return _over_places(call, _digit(call)), _law(call, rigid=True)


@couples(
    *aten(
        """
        max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices adaptive_max_pool1d
        adaptive_max_pool2d adaptive_max_pool3d
        """
    ),
)
def maximum_with_places(call: Call) -> tuple[str, str]:
    """The maxima, and where they were."""
    places = _digit(call)
    return f"{_over_places(call, places)}, ... {'_ ' * places}", _law(call, rigid=True)


def _over_places(call: Call, places: int) -> str:
    return f"... {'_ ' * places}-> ... {'_ ' * places}"


@couples(*aten("grid_sampler.default grid_sampler_2d.default grid_sampler_3d.default"))
def grid_sampler(call: Call) -> tuple[str, str]:
    places = call.rank("input") - 2
    return f"n c {'_ ' * places}, n {'_ ' * (places + 1)}-> n c {'_ ' * places}", "input"


@couples("aten._weight_norm.default")
def weight_norm(call: Call) -> tuple[str, str]:
    axes = " ".join(f"x{i}" for i in range(call.rank("v")))
    return f"{axes}, {axes} -> {axes}", "rigid(v) * g"
