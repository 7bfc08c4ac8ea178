"""Integers and booleans that are the same for every input, in one spelling.

zeros_like(x), ones(b, t), a buffer of zeros cut to (b, t) …     -->   full((b, t), number)
a buffer 0 1 2 … cut to t, arange(0, t, 1)                       -->   arange(t)
"""

from __future__ import annotations

import torch
from torch import fx

from fxmerge.coupling import Call
from fxmerge.ir.program import target_name
from passes.line_up.carry_moves.moved_view import Form
from passes.line_up.carry_moves.view_graph import Writer, aten

COUNTS = frozenset({"aten.arange.default", "aten.arange.start", "aten.arange.start_step"})
"""Known by name: they are written anew in torch's own call; a rule says with what one fills, not how it counts."""


def constant_tensor(writer: Writer, node: fx.Node) -> Form | None:
    """The form of a constant in its one spelling; None if a value is no such constant."""
    value = node.meta["val"]
    if not isinstance(value, torch.Tensor) or not value.ndim or value.is_floating_point() or value.is_complex():
        return None
    number = _number(writer, node)
    if number is not None:
        writer.uniform[node] = number
        return None if node.op == "get_attr" else _full(writer, node, number)
    return _count(writer, node)


def _number(writer: Writer, node: fx.Node) -> int | None:
    """The number that stands everywhere in a tensor."""
    if node.op == "get_attr":
        held = _held(writer, node)
        same = held is not None and held.numel() > 0 and bool((held == held.reshape(-1)[0]).all())
        return int(held.reshape(-1)[0]) if same and held is not None else None
    if (number := writer.operators.filling(node)) is not None:
        return int(number) if isinstance(number, int) else None
    moved = writer.operators.moved(node)
    return None if moved is None or moved.cast else writer.uniform.get(moved.source)


def _full(writer: Writer, node: fx.Node, number: int) -> Form | None:
    value, measured = node.meta["val"], writer.measured[node]
    sizes = [writer.sizes.argument(size, writer.graph) for size in measured]
    if None in sizes:
        return None
    filling = bool(number) if value.dtype is torch.bool else number
    copy = writer.add(aten.full.default, sizes, filling, dtype=value.dtype, device=value.device)
    return writer.source(copy, measured)


def _count(writer: Writer, node: fx.Node) -> Form | None:
    """0 1 2 … along the last axis, of which a buffer holds at least as many as are needed."""
    value, length = node.meta["val"], writer.measured[node][-1]
    if value.dtype is not torch.int64 or value.numel() != value.shape[-1] or node.op != "call_function":
        return None
    name, call = target_name(node.target), Call.of(node)
    if name in COUNTS:
        counts = call.arguments.get("start", 0) == 0 and call.arguments.get("step", 1) == 1
    else:
        counts = (
            name == "aten.slice.Tensor"
            and call.dim("dim", "self") == value.ndim - 1
            and call.arguments["start"] in (None, 0)
            and call["step"] == 1
            and _holds_counts(writer, node.args[0])
        )
    end = writer.sizes.argument(length, writer.graph) if counts else None
    if end is None:
        return None
    made = writer.source(writer.add(aten.arange.default, end, device=value.device), (length,))
    return made.regroup([*[()] * (value.ndim - 1), *made.out])


def _holds_counts(writer: Writer, node: object) -> bool:
    held = _held(writer, node) if isinstance(node, fx.Node) and node.op == "get_attr" else None
    return held is not None and bool((held.reshape(-1) == torch.arange(held.numel(), device=held.device)).all())


def _held(writer: Writer, node: fx.Node) -> torch.Tensor | None:
    """The numbers of a constant of the program."""
    held = writer.program.tensors.get(str(node.target))
    return None if held is None or node.target in writer.program.parameters or held.device.type == "meta" else held
