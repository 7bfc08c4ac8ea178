"""Operators that only rearrange: views, transpositions, expansions, joins."""

from __future__ import annotations

from collections.abc import Sequence

from fxmerge.coupling import couples, moves
from fxmerge.coupling.axes import Axis
from fxmerge.coupling.move import Move
from fxmerge.coupling.views import Held
from passes.rules.names import aten


@moves(
    *aten(
        """
                clone.default contiguous.default detach.default alias.default dropout.default
        lift_fresh_copy.default lift_fresh.default resolve_conj.default resolve_neg.default feature_dropout.default
        alpha_dropout.default feature_alpha_dropout.default detach_copy.default alias_copy.default lift.default
        data.default
        """
    ),
)
def same(move: Move) -> Sequence[Held]:
    """x  ->  x"""
    return move.held(move.operands[0][0])


@moves(*aten("real.default imag.default _conj.default conj.default conj_physical.default"), exact=False)
def part(move: Move) -> Sequence[Held]:
    """x  ->  its real or imaginary part, or its conjugate"""
    return move.held(move.operands[0][0])


@moves(*aten("_to_copy.default to type_as.default cpu.default"))
def cast(move: Move) -> Sequence[Held]:
    """x  ->  x, rounded if the result holds whole numbers."""
    axes = move.held("self")
    before, after = (node.meta["val"].dtype for node in (move.arguments["self"], move.node))
    if before.is_floating_point and not after.is_floating_point and not after.is_complex:
        for axis in axes:
            move.rigid(axis)
    return axes


@moves(*aten("transpose.int swapaxes.default swapdims.default transpose_copy.int"))
def transpose(move: Move) -> Sequence[Held]:
    axes = move.held("self")
    a, b = (move["dim0"], move["dim1"]) if move["dim0"] is not None else (move["axis0"], move["axis1"])
    axes[a], axes[b] = axes[b], axes[a]
    return axes


@moves(*aten("t.default numpy_T.default t_copy.default"))
def reverse(move: Move) -> Sequence[Held]:
    return move.held("self")[::-1]


@moves("aten.mT.default")
def transpose_last(move: Move) -> Sequence[Held]:
    axes = move.held("self")
    return [*axes[:-2], axes[-1], axes[-2]]


@moves(*aten("mH.default adjoint.default matrix_H.default"), exact=False)
def adjoint(move: Move) -> Sequence[Held]:
    """x  ->  its transpose, conjugated"""
    axes = move.held("self")
    return [*axes[:-2], axes[-1], axes[-2]]


@moves("aten.permute.default", "aten.permute_copy.default")
def permute(move: Move) -> Sequence[Held]:
    axes = move.held("self")
    return [axes[d] for d in move["dims"]]


@moves(*aten("movedim.int movedim.intlist moveaxis.int moveaxis.intlist"))
def movedim(move: Move) -> Sequence[Held]:
    axes = move.held("self")
    source, target = (
        [d % len(axes) for d in ([dims] if isinstance(dims, int) else dims)]
        for dims in (move["source"], move["destination"])
    )
    rest = iter([axis for i, axis in enumerate(axes) if i not in source])
    return [axes[source[target.index(i)]] if i in target else next(rest) for i in range(len(axes))]


@moves("aten.unsqueeze.default", "aten.unsqueeze_copy.default")
def unsqueeze(move: Move) -> Sequence[Held]:
    axes = move.held("self")
    axes.insert(move["dim"] % (len(axes) + 1), move.fresh(1))
    return axes


@moves("aten.squeeze", "aten.squeeze_copy")
def squeeze(move: Move) -> Sequence[Held]:
    dims = move.dims("dim", "self")
    return [axis for i, axis in enumerate(move.held("self")) if not (i in dims and axis.size == 1)]


@moves(
    *aten(
        """
        view.default reshape.default _unsafe_view.default flatten.using_ints unflatten.int reshape_as.default
        view_as.default view_copy.default ravel.default _reshape_copy.default
        """
    ),
)
def view(move: Move) -> Sequence[Held]:
    return move.reshape(move.held("self"), move.result)


@moves(*aten("expand.default expand_as.default broadcast_to.default expand_copy.default"))
def expand(move: Move) -> Sequence[Held]:
    """An axis of one that becomes n is a fresh axis along which the value is constant."""
    axes = move.held("self")
    new = len(move.result) - len(axes)
    axes = [*(move.fresh(1) for _ in range(new)), *axes]
    return [axis if axis.size == size else move.fresh(size) for axis, size in zip(axes, move.result, strict=True)]


@moves("aten.repeat.default", "aten.tile.default")
def repeat(move: Move) -> Sequence[Held]:
    axes = move.held("self")
    axes = [*(move.fresh(1) for _ in range(len(move.result) - len(axes))), *axes]
    return [
        axis if axis.size == size else move.product([move.fresh(size // axis.size), axis])
        for axis, size in zip(axes, move.result, strict=True)
    ]


@moves("aten.repeat_interleave.self_int")
def repeat_interleave(move: Move) -> Sequence[Held]:
    if move["dim"] is None:
        axes: list[Held] = [move.product(move.held("self"))]
    else:
        axes = move.held("self")
    return [
        axis if axis.size == size else move.product([axis, move.fresh(size // axis.size)])
        for axis, size in zip(axes, move.result, strict=True)
    ]


@moves(*aten("cat.default concat.default concatenate.default"))
def cat(move: Move) -> Sequence[Held]:
    """Concatenate along one axis; the others are the same axis."""
    operands = [move.held(name) for name, node in move.operands if node is not None]
    operands = [axes for axes in operands if not (len(axes) == 1 and axes[0].size == 0 and len(move.result) > 1)]
    if len(operands) == 1:
        return operands[0]
    dim = int(move["dim"] if move["dim"] is not None else 0) % len(move.result)
    return [
        move.concat([axes[i] for axes in operands]) if i == dim else move.same([axes[i] for axes in operands])
        for i in range(len(move.result))
    ]


@moves("aten.stack.default")
def stack(move: Move) -> Sequence[Held]:
    """The new axis is a concatenation of ones: its entries keep their places."""
    operands = [move.held(name) for name, _ in move.operands]
    axes: list[Held] = [move.same([each[i] for each in operands]) for i in range(len(move.result) - 1)]
    dim = int(move["dim"] or 0) % len(move.result)
    axes.insert(dim, move.concat([move.fresh(1) for _ in operands]))
    return axes


@moves("aten.pad.default", "aten.constant_pad_nd.default", exact=False)
def pad(move: Move) -> Sequence[Held]:
    axes = move.held("self")
    before = dict(enumerate(reversed(move["pad"][::2])))
    after = dict(enumerate(reversed(move["pad"][1::2])))
    first = len(axes) - len(before)
    value = move["value"] or 0
    if (move["mode"] or "constant") != "constant":
        changed = [i for i, axis in enumerate(axes) if axis.size != move.result[i]]
        return [move.pin(axis) and move.own(move.result[i]) if i in changed else axis for i, axis in enumerate(axes)]
    if value != 0:
        for axis in axes:
            move.rigid(axis)
    for i in before:
        axes = _padded(move, axes, first + i, int(before[i]), int(after[i]), bool(value))
    return axes


def _padded(move: Move, axes: list[Held], dim: int, before: int, after: int, filled: bool) -> list[Held]:
    """The axes with `before` and `after` entries added along `dim`; negative numbers take entries away."""
    axes = move.narrow(axes, dim, max(-before, 0), axes[dim].size - max(-after, 0))
    new = move.fresh if filled else move.blank
    if before > 0 or after > 0:
        axes[dim] = move.concat([new(max(before, 0)), axes[dim], new(max(after, 0))])
    return axes


@moves("aten.pixel_shuffle.default")
def pixel_shuffle(move: Move) -> Sequence[Held]:
    """n (c r r) h w  ->  n c (h r) (w r)"""
    r = move["upscale_factor"]
    *lead, channels, h, w = move.axes("self")
    c, rows = move.split(channels, r * r)
    row, column = move.split(rows, r)
    return [*lead, c, move.product([h, row]), move.product([w, column])]


@moves("aten.pixel_unshuffle.default")
def pixel_unshuffle(move: Move) -> Sequence[Held]:
    """n c (h r) (w r)  ->  n (c r r) h w"""
    r = move["downscale_factor"]
    *lead, c, h, w = move.axes("self")
    h, row = move.split(h, r)
    w, column = move.split(w, r)
    return [*lead, move.product([c, row, column]), h, w]


@moves("aten.channel_shuffle.default", "aten.native_channel_shuffle.default")
def channel_shuffle(move: Move) -> Sequence[Held]:
    """n (g c) ...  ->  n (c g) ..."""
    batch, channels, *places = move.axes("self")
    g, c = move.split(channels, channels.size // move["groups"])
    return [batch, move.product([c, g]), *places]


@moves("aten.im2col.default", exact=False)
def im2col(move: Move) -> Sequence[Held]:
    """n c h w  ->  n (c window) places"""
    *lead, channels, h, w = move.axes("self")
    move.pin(h)
    move.pin(w)
    window = move.own(move.result[-2] // channels.size)
    return [*lead, move.product([channels, window]), move.own(move.result[-1])]


@moves("aten.col2im.default", exact=False)
def col2im(move: Move) -> Sequence[Held]:
    """n (c window) places  ->  n c h w"""
    *lead, columns, places = move.axes("self")
    channels, window = move.split(columns, columns.size // move.result[-3])
    move.pin(window)
    move.pin(places)
    return [*lead, channels, move.own(move.result[-2]), move.own(move.result[-1])]


@moves("aten.unfold.default")
def unfold(move: Move) -> Sequence[Held]:
    """Windows along an axis: where they start, and last of all the places in them."""
    axes = move.held("self")
    dim = move["dimension"] % len(axes)
    if move["size"] == 1 and move["step"] == 1:
        return [*axes, move.fresh(1)]
    if move["size"] == move["step"]:
        axes = move.narrow(axes, dim, 0, move.result[dim] * move["size"])
        axes[dim], inner = move.split(axes[dim], move["size"])
        return [*axes, inner]
    move.pin(axes[dim])
    axes[dim] = move.own(move.result[dim])
    return [*axes, move.own(move.result[-1])]


@moves("aten.glu.default", exact=False)
def glu(move: Move) -> Sequence[Held]:
    """[a b]  ->  a * sigmoid(b): both halves move alike, the gate neither scales nor mixes."""
    axes = move.held("self")
    dim = move["dim"] % len(axes)
    half = axes[dim].size // 2
    value, gate = move.narrow(axes, dim, 0, half), move.narrow(axes, dim, half, 2 * half)
    for a, b in zip(value, gate, strict=True):
        if move.plain(a) is not move.plain(b):
            move.pair(a, b)
        else:
            move.rigid(a)
    return value


@moves(*aten("hstack.default vstack.default dstack.default column_stack.default row_stack.default"))
def stack_along(move: Move) -> Sequence[Held]:
    """Operands get the axes they lack (of size one), then are concatenated."""
    kind = str(move.node.target).split(".")[1]
    operands = []
    for name, _ in move.operands:
        axes = move.held(name)
        if kind == "column_stack" and len(axes) < 2:
            axes = [*axes, move.fresh(1)] if axes else [move.fresh(1), move.fresh(1)]
        while len(axes) < len(move.result):
            axes = [*axes, move.fresh(1)] if kind == "dstack" and len(axes) >= 2 else [move.fresh(1), *axes]
        operands.append(axes)
    dim = {"hstack": int(len(move.result) > 1), "column_stack": 1, "dstack": 2}.get(kind, 0)
    return [
        move.concat([axes[i] for axes in operands]) if i == dim else move.same([axes[i] for axes in operands])
        for i in range(len(move.result))
    ]


@moves(*aten("atleast_1d.default atleast_2d.default atleast_3d.default"))
def at_least(move: Move) -> Sequence[Held]:
    axes, rank = move.held("self"), len(move.result)
    if len(axes) == rank:
        return axes
    if rank == 3 and len(axes) == 2:
        return [*axes, move.fresh(1)]
    middle = [*axes, *[move.fresh(1)] * (rank == 3)]
    return [*[move.fresh(1)] * (rank - len(middle)), *middle]


@moves(*aten("fliplr.default flipud.default rot90.default"))
def turned(move: Move) -> Sequence[Held]:
    """The first two axes (or those given) change order: both tolerate nothing."""
    axes = move.held("self")
    dims = move["dims"] if move["dims"] is not None else (0, 1)
    for dim in dims:
        move.pin(axes[dim])
    return [axis if i not in [d % len(axes) for d in dims] else move.own(move.result[i]) for i, axis in enumerate(axes)]


@moves(*aten("meshgrid.default meshgrid.indexing"))
def meshgrid(move: Move) -> Sequence[Sequence[Held]]:
    """Every result varies along one axis and is constant along the others."""
    results = []
    lengths = [move.axes(name) for name, _ in move.operands]
    for number, shape in enumerate(move.results):
        own: list[Axis] = lengths[number]
        axes: list[Held] = [move.fresh(size) for size in shape]
        place = number if move["indexing"] != "xy" or number > 1 else 1 - number
        if own:
            axes[place] = own[0]
        results.append(axes)
    return results


@moves("aten.view_as_real.default", exact=False)
def view_as_real(move: Move) -> Sequence[Held]:
    return [*move.held("self"), move.own(2)]


@moves("aten.view_as_complex.default", exact=False)
def view_as_complex(move: Move) -> Sequence[Held]:
    *axes, pair = move.held("self")
    move.pin(pair)
    return axes


complex_of = couples("aten.complex.default", "..., ... -> ...", "real + imag")
polar = couples("aten.polar.default", "..., ... -> ...", "abs * rigid(angle)")
