"""How large the values of a model from a file may become, found on fake tensors before anything is computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.errors import SourceError
from fxmerge.ir.program import Program
from fxmerge.messages import damaged

FREE_BYTES = 1 << 30
"""Memory that the values of any model may take at once."""

RATIO = 32
"""Beyond `FREE_BYTES` they may take this many times what the file itself holds: large models have large values."""


def check_values(program: Program) -> None:
    """Raise `SourceError` unless every value is a plain tensor or number, and all that live at once fit the bounds."""
    held = sum(_bytes(t) for t in (*program.tensors.values(), *program.samples.values()))
    most = max(FREE_BYTES, RATIO * held)
    ports = {port.name: node.meta["val"] for port, node in zip(program.inputs, program.placeholders, strict=True)}
    check_inputs(ports, held)
    for node in program:
        for value in _tensors(node.meta.get("val")):
            if value.layout is not torch.strided or value.is_quantized or value.is_nested:
                raise damaged(f"{node} ({node.target}) gives no plain tensor")
    node, peak = _peak(program)
    if peak > most:
        raise SourceError(
            f"its values would take {peak >> 20} MiB at {node} ({node.target}), the file itself holds {held >> 20} MiB",
            "make its constants or inputs smaller and capture it again",
        )


def check_inputs(inputs: Mapping[str, Tensor], held: int) -> None:
    """Raise `SourceError` if the inputs, at the sizes a program is analysed with, take more than the file suggests."""
    for name, value in inputs.items():
        if _bytes(value) > max(FREE_BYTES // 4, RATIO * held):
            raise damaged(f"the input {name} would take {_bytes(value) >> 20} MiB")


def _peak(program: Program) -> tuple[fx.Node, int]:
    """The call during which most memory is held, and how much: each value from its making to its last use."""
    last: dict[int, int] = {}
    order = list(program)
    for place, node in enumerate(order):
        for each in (node, *node.all_input_nodes):
            last |= {_storage(value): place for value in _tensors(each.meta.get("val"))}
    ends: dict[int, list[int]] = {}
    for storage, place in last.items():
        ends.setdefault(place, []).append(storage)
    live: dict[int, int] = {}
    worst, now = (order[0], 0), 0
    for place, node in enumerate(order):
        for value in _tensors(node.meta.get("val")):
            if node.op != "get_attr" and _storage(value) not in live:
                live[_storage(value)] = _bytes(value)
                now += live[_storage(value)]
        worst = max(worst, (node, now), key=lambda found: found[1])
        now -= sum(live.pop(storage, 0) for storage in ends.get(place, ()))
    return worst


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _storage(value: Tensor) -> int:
    return int(value.untyped_storage()._cdata)


def _bytes(value: Tensor) -> int:
    """Memory of a tensor; a view holds all of what it views."""
    size = value.untyped_storage().nbytes()
    return int(size) if isinstance(size, int) else 0
