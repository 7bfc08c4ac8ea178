"""Operators that take parts of a value, by position or by index, and put them back."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, fx

from fxmerge.coupling import moves
from fxmerge.coupling.move import Move
from fxmerge.coupling.views import Held
from passes.rules.names import aten

PICKED = "places that no index names are free, and which they are is in the numbers"
"""Why rules about indices claim less than holds for some of them."""


@moves("aten.select.int", "aten.select_copy.int")
def select(move: Move) -> Sequence[Held]:
    axes = move.held("self")
    dim, size = move["dim"] % len(axes), axes[move["dim"]].size
    index = move["index"]
    if not isinstance(index, int):
        move.pin(axes[dim])
    else:
        axes = move.narrow(axes, dim, index % size, index % size + 1)
    del axes[dim]
    return axes


@moves(*aten("slice.Tensor slice_copy.Tensor narrow.default narrow_copy.default"))
def slice_(move: Move) -> Sequence[Held]:
    axes = move.held("self")
    dim = int(move["dim"] or 0) % len(axes)
    size = axes[dim].size
    if move["length"] is not None:
        start = move["start"] % size
        return move.narrow(axes, dim, start, start + move["length"])
    start, stop, step = slice(move["start"], move["end"], move["step"]).indices(size)
    if step == 1:
        return move.narrow(axes, dim, start, max(start, stop))
    return _every(move, axes, dim, start, max(start, stop), step)


def _every(move: Move, axes: list[Held], dim: int, start: int, stop: int, step: int) -> list[Held]:
    """Every `step`-th entry: the axis is a product of which the minor factor is cut."""
    size, count = axes[dim].size, -(-(stop - start) // step)
    low = start - start % step
    high = low + count * step
    if high > size:  # the last stride is incomplete
        axes[dim] = move.pin(axes[dim]) and move.own(count)
        return axes
    axes = move.narrow(axes, dim, low, high)
    major, minor = move.split(axes[dim], step)
    axes[dim] = major
    move.narrow([minor], 0, start - low, start - low + 1)
    return axes


@moves(
    *aten(
        """
        split.Tensor split.sizes split_with_sizes.default chunk.default tensor_split.sections tensor_split.indices
        unsafe_split.Tensor unsafe_chunk.default split_with_sizes_copy.default split_copy.Tensor
        unsafe_split_with_sizes.default
        """
    ),
)
def split(move: Move) -> Sequence[Sequence[Held]]:
    """The axis is cut where the results end."""
    axes = move.held("self")
    dim = int(move["dim"] or 0) % len(axes)
    results, start = [], 0
    for shape in move.results:
        results.append(move.narrow(axes, dim, start, start + shape[dim]))
        start += shape[dim]
    return results


@moves("aten.unbind.int", "aten.unbind_copy.int")
def unbind(move: Move) -> Sequence[Sequence[Held]]:
    axes = move.held("self")
    dim = int(move["dim"] or 0) % len(axes)
    results = []
    for i in range(axes[dim].size):
        taken = move.narrow(axes, dim, i, i + 1)
        del taken[dim]
        results.append(taken)
    return results


@moves(*aten("diagonal.default linalg_diagonal.default diagonal_copy.default"))
def diagonal(move: Move) -> Sequence[Held]:
    axes = move.held(move.operands[0][0])
    a, b = (int(move[name]) % len(axes) for name in ("dim1", "dim2"))
    rest = [axis for i, axis in enumerate(axes) if i not in (a, b)]
    if move["offset"] == 0 and axes[a].size == axes[b].size:
        move.couple(axes[a], axes[b])
        return [*rest, axes[a]]
    move.pin(axes[a])
    move.pin(axes[b])
    return [*rest, move.own(move.result[-1])]


@moves("aten.slice_scatter.default")
def slice_scatter(move: Move) -> Sequence[Held]:
    """The value written is the same axis as the slice it replaces."""
    axes = move.held("self")
    source = move.held("src")
    dim = int(move["dim"] or 0) % len(axes)
    start, stop, step = slice(move["start"], move["end"], move["step"]).indices(axes[dim].size)
    read = (
        move.narrow(axes, dim, start, max(start, stop))
        if step == 1
        else _every(move, list(axes), dim, start, stop, step)
    )
    for a, b in zip(read, source, strict=True):
        move.same([a, b])
    return axes


@moves("aten.select_scatter.default")
def select_scatter(move: Move) -> Sequence[Held]:
    axes = move.held("self")
    dim = move["dim"] % len(axes)
    index = move["index"] % axes[dim].size
    read = move.narrow(axes, dim, index, index + 1)
    del read[dim]
    for a, b in zip(read, move.held("src"), strict=True):
        move.same([a, b])
    return axes


@moves("aten.copy.default", "aten.copy_.default")
def copy(move: Move) -> Sequence[Held]:
    source = move.held("src")
    source = [*(move.fresh(1) for _ in range(len(move.result) - len(source))), *source]
    return [axis if axis.size == size else move.fresh(size) for axis, size in zip(source, move.result, strict=True)]


# -- by index --------------------------------------------------------------------------------------


def _run(move: Move, index: fx.Node) -> tuple[int, int] | None:
    """Start and stop, if an index is a constant one-dimensional run of consecutive positions."""
    value = move.value(index)
    if not isinstance(value, Tensor) or value.dtype.is_floating_point or value.ndim > 1 or value.dtype.itemsize < 2:
        return None
    places = value.reshape(-1).tolist()
    if not places or places != list(range(places[0], places[0] + len(places))) or places[0] < 0 <= places[-1]:
        return (places[0], places[0] + len(places)) if places and len(places) == 1 else None
    return places[0], places[0] + len(places)


def _read(move: Move, axes: list[Held], indices: Sequence[fx.Node | None]) -> list[Held]:
    """Axes of `x[indices]`: indexed axes tolerate nothing, the axes of the indices take their place."""
    indexed = [d for d, index in enumerate(indices) if index is not None]
    only = indices[indexed[0]] if len(indexed) == 1 else None
    run = _run(move, only) if only is not None else None
    if only is not None and run is not None:
        size = axes[indexed[0]].size
        start = run[0] % size
        axes = move.narrow(axes, indexed[0], start, start + run[1] - run[0])
        if not only.meta["val"].ndim:
            del axes[indexed[0]]
        return axes
    for d in indexed:
        move.pin(axes[d])
    new = _broadcast(move, [index for index in indices if index is not None])
    adjacent = indexed == list(range(indexed[0], indexed[-1] + 1))
    rest = [axis for d, axis in enumerate(axes) if d not in indexed]
    place = indexed[0] if adjacent else 0
    return [*rest[:place], *new, *rest[place:]]


def _broadcast(move: Move, indices: Sequence[fx.Node]) -> list[Held]:
    """The axes that indices have together."""
    operands = [move.axes(index) for index in indices]
    rank = max(map(len, operands))
    padded = [[move.fresh(1)] * (rank - len(axes)) + axes for axes in operands]
    return [move.rigid(move.same([axes[i] for axes in padded])) for i in range(rank)]


@moves("aten.index.Tensor", "aten._unsafe_index.Tensor", modest=PICKED)
def index(move: Move) -> Sequence[Held]:
    return _read(move, move.held("self"), _indices(move))


def _indices(move: Move) -> list[fx.Node | None]:
    return list(move.arguments["indices"])


@moves(*aten("index_put.default index_put_.default _unsafe_index_put.default"), exact=False)
def index_put(move: Move) -> Sequence[Held]:
    """The values written are the same axes as what the indices would read."""
    axes = move.held("self")
    read = _read(move, list(axes), _indices(move))
    values = move.held("values")
    for a, b in zip(read[len(read) - len(values) :], values, strict=True):
        if a.size == b.size:
            move.same([a, b])
    if len(values) < len(read) or any(
        a.size != b.size for a, b in zip(read[-len(values) :] if values else [], values, strict=True)
    ):
        for axis in read:
            move.rigid(axis)
    return axes


@moves("aten.index_select.default")
def index_select(move: Move) -> Sequence[Held]:
    axes = move.held("self")
    dim = move["dim"] % max(len(axes), 1)
    return _read(move, axes, [None] * dim + [move.arguments["index"]])


@moves("aten.take_along_dim.default")
def take_along(move: Move) -> Sequence[Held]:
    """As `gather`, but value and index broadcast."""
    axes, places, dim = move.axes("self"), move.axes("indices"), move["dim"]
    if dim is None:
        for axis in axes:
            move.pin(axis)
        return [move.rigid(place) for place in move.axes("indices")]
    dim %= len(axes)
    move.pin(axes[dim])
    result: list[Held] = []
    for i, (axis, place) in enumerate(zip(axes, places, strict=True)):
        if i != dim and 1 not in (axis.size, place.size):
            move.pair(axis, place)
        result.append(move.rigid(place) if i == dim or axis.size == 1 else axis)
    return result


@moves("aten.gather.default")
def gather(move: Move) -> Sequence[Held]:
    """The gathered axis tolerates nothing; along the others value and index move together."""
    axes, places = move.held("self"), move.axes("index")
    dim = move["dim"] % max(len(axes), 1)
    result: list[Held] = []
    for i, place in enumerate(places):
        if i == dim:
            move.pin(axes[i])
            result.append(move.rigid(place))
        else:
            axes = move.narrow(axes, i, 0, place.size)
            move.pair(axes[i], place)
            result.append(axes[i])
    return result


@moves(*aten("scatter scatter_add.default scatter_reduce.two"), exact=False, modest=PICKED)
def scatter(move: Move) -> Sequence[Held]:
    """What `gather` would read is the same axes as what is written."""
    axes, places = move.held("self"), move.axes("index")
    if move["reduce"] not in (None, "sum", "mean", "add"):
        for axis in (*axes, *move.held("src")):
            move.rigid(axis)
    source = move.axes("src") if isinstance(move.arguments.get("src"), fx.Node) else None
    dim = move["dim"] % max(len(axes), 1)
    move.pin(axes[dim])
    part = list(axes)
    for i, place in enumerate(places):
        if source is not None:
            source = list(map(move.plain, move.narrow(source, i, 0, place.size)))
        if i == dim:
            if source is not None:
                move.pin(source[i])
            move.pin(place)
            continue
        part = move.narrow(part, i, 0, place.size)
        move.pair(part[i], place)
        if source is not None:
            move.same([part[i], source[i]])
        else:
            move.rigid(part[i])
    return axes


@moves(*aten("index_add.default index_copy.default index_fill.int_Scalar"), exact=False, modest=PICKED)
def index_add(move: Move) -> Sequence[Held]:
    axes = move.held("self")
    dim = move["dim"] % max(len(axes), 1)
    move.pin(axes[dim])
    for axis in move.held("index"):
        move.pin(axis)
    if isinstance(move.arguments.get("source"), fx.Node):
        for i, axis in enumerate(move.held("source")):
            move.pin(axis) if i == dim else move.same([axes[i], axis])
    else:
        for axis in axes:
            move.rigid(axis)
    return axes
