"""One call of an operator: its arguments by name, the shapes of its tensors, and where it is called."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx


class RuleRefusal(Exception):
    """A rule does not know this case of its operator: the one call is opaque, and the message says why."""


@dataclass(frozen=True)
class Call:
    """One call of an operator: its arguments by the names of its schema, and the shapes of its tensors."""

    node: fx.Node
    arguments: Mapping[str, Any]

    @classmethod
    def of(cls, node: fx.Node) -> Call:
        return cls(node, _arguments(node))

    def __getitem__(self, name: str) -> Any:
        """An argument, sizes computed in the graph as plain integers; tensors as nodes."""
        return fx.node.map_arg(self.arguments.get(name), _plain)

    @property
    def operands(self) -> tuple[tuple[str, fx.Node | None], ...]:
        """Tensor operands in order, by name; those of a list are named `tensors0`, `tensors1` …"""
        return tuple(_operands(self.node, self.arguments))

    def shape(self, name: str) -> tuple[int, ...]:
        """Sizes of a tensor operand."""
        return tuple(dict(self.operands)[name].meta["val"].shape)  # type: ignore[union-attr]

    def rank(self, name: str) -> int:
        return len(self.shape(name))

    def dim(self, name: str, operand: str) -> int:
        """The argument `name` as a non-negative axis of `operand`."""
        return int(self[name]) % max(self.rank(operand), 1)

    def dims(self, name: str, operand: str) -> tuple[int, ...]:
        """The argument `name` as non-negative axes of `operand`; all of them if it is empty or absent."""
        rank = self.rank(operand)
        given = self[name]
        given = [given] if isinstance(given, int) else given
        return tuple(sorted(d % rank for d in given)) if given else tuple(range(rank))

    @property
    def results(self) -> tuple[tuple[int, ...], ...]:
        """Sizes of every result tensor."""
        value = self.node.meta["val"]
        values = value if isinstance(value, tuple | list) else (value,)
        return tuple(tuple(v.shape) for v in values if isinstance(v, Tensor))

    @property
    def result(self) -> tuple[int, ...]:
        return self.results[0]

    def __str__(self) -> str:
        return f"{operator_name(self.node)} at {self.node.meta.get('source') or 'an unknown line'}"


def operator_name(node: fx.Node) -> str:
    """Name of what a node calls, as rules and reports write it: "aten.linear.default"."""
    if isinstance(node.target, torch._ops.OpOverload):
        return str(node.target)
    return getattr(node.target, "__name__", str(node.target))


def _arguments(node: fx.Node) -> dict[str, Any]:
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return {f"argument{i}": value for i, value in enumerate(node.args)} | dict(node.kwargs)
    given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
    return {a.name: given.get(a.name, a.default_value if a.has_default_value() else None) for a in schema.arguments}


def _operands(node: fx.Node, arguments: Mapping[str, Any]) -> Iterator[tuple[str, fx.Node | None]]:
    schema = getattr(node.target, "_schema", None)
    types = {a.name: str(a.type) for a in schema.arguments} if schema else {}
    for name, value in arguments.items():
        kind = types.get(name, "Tensor")
        if isinstance(value, list | tuple):
            if "Tensor" in kind:
                yield from ((f"{name}{i}", v if _is_tensor(v) else None) for i, v in enumerate(value))
        elif _is_tensor(value):
            yield name, value
        elif "Tensor" in kind:
            yield name, None


def _is_tensor(value: Any) -> bool:
    return isinstance(value, fx.Node) and isinstance(value.meta.get("val"), Tensor)


def _plain(node: fx.Node) -> Any:
    value = node.meta.get("val")
    return value if isinstance(value, int | float | bool) else node


def has_tensor(node: fx.Node) -> bool:
    """Whether a value is a tensor, or holds one."""
    return _holds_tensor(node.meta.get("val"))


def _holds_tensor(value: Any) -> bool:
    return isinstance(value, Tensor) or (isinstance(value, tuple | list) and any(map(_holds_tensor, value)))
