"""Operators that sum, average or choose along axes."""

from __future__ import annotations

from collections.abc import Sequence

from fxmerge.coupling import Call, couples


def _letters(rank: int) -> list[str]:
    return [f"x{i}" for i in range(rank)]


def reduce(axes: Sequence[str], dims: Sequence[int], keepdim: bool) -> str:
    """Signature of a reduction of the axes `dims`."""
    kept = ["1" if i in dims else axis for i, axis in enumerate(axes) if keepdim or i not in dims]
    return f"{' '.join(axes)} -> {' '.join(kept)}"


@couples("aten.sum.default", "aten.sum.dim_IntList", "aten.mean.default", "aten.mean.dim", "aten.nansum.default")
def sum_over(call: Call) -> tuple[str, str]:
    return reduce(_letters(call.rank("self")), call.dims("dim", "self"), bool(call["keepdim"])), "self"


@couples(
    "aten.amax.default", "aten.amin.default", "aten.max.default", "aten.min.default", "aten.any.default", "aten.any.dim",
    "aten.all.default", "aten.all.dim", "aten.any.dims", "aten.all.dims", "aten.prod.default", "aten.logsumexp.default",
    "aten.var.correction", "aten.std.correction", "aten.var.dim", "aten.std.dim", "aten.var.default", "aten.std.default",
    "aten.prod.dim_int", "aten.count_nonzero.default", "aten.count_nonzero.dim_IntList",
)  # fmt: skip
def reduce_rigidly(call: Call) -> tuple[str, str]:
    return reduce(_letters(call.rank("self")), call.dims("dim", "self"), bool(call["keepdim"])), "rigid(self)"


@couples(
    "aten.linalg_vector_norm.default", "aten.norm.ScalarOpt_dim", "aten.norm.Scalar", "aten.norm.ScalarOpt_dim_dtype",
    "aten.frobenius_norm.dim", "aten.linalg_norm.default",
)  # fmt: skip
def norm(call: Call) -> tuple[str, str]:
    """The Euclidean length does not know the directions of its axes; other norms know them up to order and sign."""
    axes, dims = _letters(call.rank("self")), call.dims("dim", "self")
    order = call["ord"] if call["ord"] is not None else call["p"] if call["p"] is not None else 2
    along = ", ".join(axes[d] for d in dims)
    law = f"length(self, {along})" if order == 2 else "absolute(self)" if order and order > 0 else "rigid(self)"
    return reduce(axes, dims, bool(call["keepdim"])), law


@couples("aten.var_mean.correction", "aten.std_mean.correction", "aten.aminmax.default")
def reduce_twice(call: Call) -> tuple[str, str]:
    one = reduce(_letters(call.rank("self")), call.dims("dim", "self"), bool(call["keepdim"]))
    return f"{one}, {one.partition(' -> ')[2]}", "rigid(self)"


@couples("aten.max.dim", "aten.min.dim", "aten.median.dim")
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


@couples("aten.cumsum.default", "aten.flip.default", "aten.roll.default", "aten.triu.default", "aten.tril.default")
def along(call: Call) -> tuple[str, str]:
    """Linear maps along axes that know the order of their entries."""
    axes = _letters(call.rank("self"))
    given = call["dims"] if call["dims"] is not None else call["dim"]
    dims = [given] if isinstance(given, int) else given or (range(len(axes)) if call["shifts"] is not None else (-2, -1))
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


@couples("aten.cummax.default", "aten.cummin.default", "aten.sort.default", "aten.sort.stable")
def ordered(call: Call) -> tuple[str, str]:
    axes = _letters(call.rank("self"))
    dim = int(call["dim"] if call["dim"] is not None else -1)
    axes[dim] += "!"
    text = " ".join(axes)
    return f"{text} -> {text}, {text}", "rigid(self)"


@couples("aten.argsort.default", "aten.argsort.stable", "aten.msort.default")
def order(call: Call) -> tuple[str, str]:
    axes = _letters(call.rank("self"))
    axes[int(call["dim"] if call["dim"] is not None else 0)] += "!"
    text = " ".join(axes)
    return f"{text} -> {text}", "rigid(self)"


@couples("aten.topk.default", "aten.kthvalue.default")
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


histc = couples("aten.histc.default", "aten.bincount.default", "x! -> _", "rigid(self)")


@couples("aten.one_hot.default")
def one_hot(call: Call) -> tuple[str, str]:
    return "... -> ... _", "rigid(self)"


@couples("aten.searchsorted.Tensor", "aten.bucketize.Tensor")
def search(call: Call) -> tuple[str, str]:
    """Where values belong among sorted ones."""
    sorted_first = call.operands[0][0] == "sorted_sequence"
    return "_, ... -> ..." if sorted_first else "..., _ -> ...", "rigid(self)"
