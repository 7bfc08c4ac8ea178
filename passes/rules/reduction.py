"""Operators that sum, average or choose along axes."""

from __future__ import annotations

from collections.abc import Sequence

from fxmerge.coupling import Call, couples
from passes.rules.names import aten


def _letters(rank: int) -> list[str]:
    return [f"x{i}" for i in range(rank)]


def reduce(axes: Sequence[str], dims: Sequence[int], keepdim: bool) -> str:
    """Signature of a reduction of the axes `dims`."""
    kept = ["1" if i in dims else axis for i, axis in enumerate(axes) if keepdim or i not in dims]
    return f"{' '.join(axes)} -> {' '.join(kept)}"


@couples(*aten("sum.default sum.dim_IntList mean.default mean.dim nansum.default"))
def sum_over(call: Call) -> tuple[str, str]:
    return reduce(_letters(call.rank("self")), call.dims("dim", "self"), bool(call["keepdim"])), "self"


@couples(
    *aten(
        """
        amax.default amin.default max.default min.default any.default any.dim all.default all.dim any.dims all.dims
        prod.default logsumexp.default var.correction std.correction var.dim std.dim var.default std.default
        prod.dim_int count_nonzero.default count_nonzero.dim_IntList
        """
    ),
)
def reduce_rigidly(call: Call) -> tuple[str, str]:
    return reduce(_letters(call.rank("self")), call.dims("dim", "self"), bool(call["keepdim"])), "rigid(self)"


@couples(
    *aten(
        """
        linalg_vector_norm.default norm.ScalarOpt_dim norm.Scalar norm.ScalarOpt_dim_dtype frobenius_norm.dim
        linalg_norm.default
        """
    ),
)
def norm(call: Call) -> tuple[str, str]:
    """The Euclidean length does not know the directions of its axes; other norms know them up to order and sign."""
    axes, dims = _letters(call.rank("self")), call.dims("dim", "self")
    order = call["ord"] if call["ord"] is not None else call["p"] if call["p"] is not None else 2
    along = ", ".join(axes[d] for d in dims)
    law = f"length(self, {along})" if order == 2 else "absolute(self)" if order and order > 0 else "rigid(self)"
    return reduce(axes, dims, bool(call["keepdim"])), law


@couples(*aten("var_mean.correction std_mean.correction aminmax.default"))
def reduce_twice(call: Call) -> tuple[str, str]:
    one = reduce(_letters(call.rank("self")), call.dims("dim", "self"), bool(call["keepdim"]))
    return f"{one}, {one.partition(' -> ')[2]}", "rigid(self)"


@couples(*aten("max.dim min.dim median.dim kthvalue.default"))
def choose(call: Call) -> tuple[str, str]:
    """The values chosen, and their positions: whoever moves the axis changes the positions."""
    axes = _letters(call.rank("self"))
    axes[call.dim("dim", "self")] += "!"
    one = reduce(axes, [call.dim("dim", "self")], bool(call["keepdim"]))
    return f"{one}, {one.partition(' -> ')[2].replace('!', '')}", "rigid(self)"


@couples("aten.argmax.default", "aten.argmin.default")
def position(call: Call) -> tuple[str, str]:
    dims = call.dims("dim", "self")
    axes = [axis + "!" if i in dims else axis for i, axis in enumerate(_letters(call.rank("self")))]
    return reduce(axes, dims, bool(call["keepdim"])), "rigid(self)"


@couples(*aten("cumsum.default triu.default tril.default"))
def along(call: Call) -> tuple[str, str]:
    """Linear maps along axes that know the order of their entries."""
    return _along(call)


@couples(*aten("flip.default"), exact=True)
def flip(call: Call) -> tuple[str, str]:
    return _along(call)


@couples(*aten("roll.default"), exact=True, modest="turns commute with turns, and no group here holds turns alone")
def roll(call: Call) -> tuple[str, str]:
    return _along(call)


def _along(call: Call) -> tuple[str, str]:
    axes = _letters(call.rank("self"))
    given = call["dims"] if call["dims"] is not None else call["dim"]
    dims = (
        [given] if isinstance(given, int) else given or (range(len(axes)) if call["shifts"] is not None else (-2, -1))
    )
    for dim in dims:
        axes[dim] += "!"
    text = " ".join(axes)
    return f"{text} -> {text}", "self"


@couples("aten.cumprod.default", "aten.logcumsumexp.default")
def along_rigidly(call: Call) -> tuple[str, str]:
    axes = _letters(call.rank("self"))
    axes[call.dim("dim", "self")] += "!"
    text = " ".join(axes)
    return f"{text} -> {text}", "rigid(self)"


@couples(*aten("cummax.default cummin.default sort.default sort.stable"))
def ordered(call: Call) -> tuple[str, str]:
    axes = _letters(call.rank("self"))
    dim = int(call["dim"] if call["dim"] is not None else -1)
    axes[dim] += "!"
    text = " ".join(axes)
    return f"{text} -> {text}, {text}", "rigid(self)"


@couples(*aten("argsort.default argsort.stable msort.default"))
def order(call: Call) -> tuple[str, str]:
    axes = _letters(call.rank("self"))
    axes[int(call["dim"] if call["dim"] is not None else 0)] += "!"
    text = " ".join(axes)
    return f"{text} -> {text}", "rigid(self)"


@couples("aten.topk.default")
def largest(call: Call) -> tuple[str, str]:
    axes = _letters(call.rank("self"))
    dim = call.dim("dim", "self")
    axes[dim] += "!"
    out = [axis if i != dim else "top!" for i, axis in enumerate(axes)]
    return f"{' '.join(axes)} -> {' '.join(out)}, {' '.join(out)}", "rigid(self)"


@couples("aten.diff.default")
def diff(call: Call) -> tuple[str, str]:
    axes = _letters(call.rank("self"))
    dim = call.dim("dim", "self")
    out = [axis if i != dim else "_" for i, axis in enumerate(axes)]
    axes[dim] += "!"
    return f"{' '.join(axes)} -> {' '.join(out)}", "self"


histc = couples("aten.histc.default", "x -> _", "rigid(self)")
bincount = couples("aten.bincount.default", "x -> _", "rigid(self)", modest="the size of the result is in the numbers")


@couples("aten.one_hot.default")
def one_hot(call: Call) -> tuple[str, str]:
    return "... -> ... _", "rigid(self)"


@couples("aten.searchsorted.Tensor", "aten.bucketize.Tensor")
def search(call: Call) -> tuple[str, str]:
    """Where values belong among sorted ones."""
    sorted_first = call.operands[0][0] == "sorted_sequence"
    return "_, ... -> ..." if sorted_first else "..., _ -> ...", "rigid(self)"
