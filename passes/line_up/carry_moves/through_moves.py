"""What a move makes of a form: reshapes, permutes, parts of axes, and copies along new ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from fxmerge.coupling import Call
from fxmerge.ir.program import target_name
from passes.line_up.carry_moves.moved_view import Form, Group, Size, size
from passes.line_up.carry_moves.view_graph import Writer, aten, one_atom

SPLITS = frozenset({"aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default", "aten.unbind.int"})
"""Calls of several results. They, slices and copies are written anew, so their arguments are read by name; every other
move goes by its rule, and one that neither knows is not carried."""


def moved(writer: Writer, node: fx.Node, form: Form) -> Form | list[Form] | None:
    """The form of a moved value, or of each of its parts; None if the call is no move, or none that a form describes.

    `form` is that of the call's first operand.
    """
    name = target_name(node.target)
    how = writer.operators.moved(node)
    if how is None or how.cast or how.source is not node.args[0]:
        return None
    if how.turned is not None and not how.still:
        return form.permute(how.turned)
    if how.reshaped:
        return form.reshape(writer.measured[node])
    if name == "aten.expand.default":
        return _expand(writer, node, form)
    if name == "aten.repeat_interleave.self_int":
        return _repeat(writer, node, form)
    if name in SPLITS:
        return _split(writer, node, form)
    if name not in ("aten.select.int", "aten.slice.Tensor"):
        return None
    call = Call.of(node)
    axis = call.dim("dim", "self")
    if name == "aten.select.int":
        return _select(writer, form, axis, call.arguments["index"])
    start, stop = call.arguments["start"] or 0, call.arguments["end"]
    stop = form.shape[axis][0] if stop is None else stop
    return _slice(writer, form, axis, start, stop) if call["step"] == 1 else None


def _expand(writer: Writer, node: fx.Node, form: Form) -> Form | None:
    """Copies along axes of size one: these come first, and no other axis has size one."""
    return _spread(
        writer, form.regroup([*[()] * (len(writer.measured[node]) - form.rank), *form.out]), writer.measured[node]
    )


def _repeat(writer: Writer, node: fx.Node, form: Form) -> Form | None:
    """Copies beside every entry of an axis: along a new one, which is then joined to it."""
    call = Call.of(node)
    if call.arguments["dim"] is None or not isinstance(call.arguments["repeats"], int):
        return None
    after, times = call.dim("dim", "self") + 1, call.arguments["repeats"]
    found = _spread(
        writer,
        form.regroup([*form.out[:after], (), *form.out[after:]]),
        [*form.shape[:after], (times, times), *form.shape[after:]],
    )
    return None if found is None else found.reshape(writer.measured[node])


def _spread(writer: Writer, form: Form, wanted: Sequence[Size]) -> Form | None:
    groups = form.out
    new = [axis for axis, group in enumerate(groups) if not group and wanted[axis] != (1, 1)]
    if not new:
        return form.regroup(groups)
    sizes = [writer.sizes.argument(wanted[axis], writer.graph) for axis in new]
    if None in sizes:
        return None
    kept = [group for group in groups if group]
    copy = writer.add(aten.expand.default, writer.write(form.regroup(kept)), [*sizes, *[-1] * len(kept)])
    own = {axis: one_atom(wanted[axis]) for axis in new}
    return Form(copy, (*own.values(), *kept), tuple(own.get(axis, group) for axis, group in enumerate(groups)))


def _split(writer: Writer, node: fx.Node, form: Form) -> list[Form] | None:
    axis, start, parts = Call.of(node).dim("dim", "self"), 0, []
    for number, part in enumerate(writer.measured[node]):
        if target_name(node.target) == "aten.unbind.int":
            found = _select(writer, form, axis, number)
        else:
            found = _slice(writer, form, axis, start, start + part[axis][0])
            start += part[axis][0]
        if found is None:
            return None
        parts.append(found)
    return parts


def _select(writer: Writer, form: Form, axis: int, index: Any) -> Form | None:
    group, (length, other) = form.out[axis], form.shape[axis]
    rest = (*form.out[:axis], *form.out[axis + 1 :])
    if not group:
        return form.regroup(rest)
    if not isinstance(index, int) or len(group) != 1 or (index < 0 and length != other):
        return None
    base, place = _isolated(form, axis)
    node = writer.add(aten.select.int, writer.write(base), place, index % length if index < 0 else index)
    return Form(node, (*base.out[:place], *base.out[place + 1 :]), rest)


def _slice(writer: Writer, form: Form, axis: int, start: Any, stop: Any) -> Form | None:
    group, (length, other) = form.out[axis], form.shape[axis]
    if length != other or not isinstance(start, int) or not isinstance(stop, int):
        return None
    start, stop = (min(max(n + length if n < 0 else n, 0), length) for n in (start, stop))
    if (start, stop) == (0, length):
        return form
    minor = size(group[1:])
    if minor[0] != minor[1] or start % minor[0] or stop % minor[0] or start >= stop:
        return None
    base, place = _isolated(form, axis)
    node = writer.add(aten.slice.Tensor, writer.write(base), place, start // minor[0], stop // minor[0])
    length = (stop - start) // minor[0]
    kept = one_atom((length, length))
    out = form.refined({group[0]: kept}).out
    return Form(node, (*base.out[:place], kept, *base.out[place + 1 :]), out)


def _isolated(form: Form, axis: int) -> tuple[Form, int]:
    """The source with the major atom of an axis of the value as an axis of its own, and where that is."""
    atom = form.out[axis][0]
    out: list[Group] = []
    place = 0
    for group in form.axes:
        if atom not in group:
            out.append(group)
            continue
        at = group.index(atom)
        place = len(out) + (at > 0)
        out.extend(part for part in (group[:at], (atom,), group[at + 1 :]) if part)
    return form.regroup(out), place
