"""Concrete fake values for every node, at sizes chosen so that a dynamic size equals no static one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fxmerge.ir.merge import SHAPES

if TYPE_CHECKING:
    from fxmerge.ir.program import Program

MOST_ITEMS = 1 << 16
"""A call gives at most so many tensors: each costs time, whatever its size."""

PRIMES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 5, 3, 2)


def propagate(program: Program) -> dict[str, int]:
    """Set every node's `meta["val"]` by running the graph on fake tensors; return the sizes used.

    A node copied from another program keeps its value where its operands and arguments are the same ones, so a pass
    costs what it changes.
    """
    hints = dict(program.hints) or choose(program)
    mode = _mode_of(program)
    run = _Propagate(program, mode, hints)
    with mode, torch.no_grad():
        run.run(enable_io_processing=False)
    return hints


def choose(program: Program) -> dict[str, int]:
    """A size for each dynamic dimension, inside its range and different from every static size where possible."""
    taken = {n for tensor in program.tensors.values() for n in tensor.shape}
    taken |= {n for port in (*program.inputs, *program.outputs) for n in port.shape if isinstance(n, int)}
    for node in program.graph.nodes:
        fx.node.map_aggregate((node.args, node.kwargs), lambda a: taken.add(a) if type(a) is int else None)
    hints: dict[str, int] = {}
    for name in dict.fromkeys(n for port in program.inputs for n in port.dynamic):
        low, high = program.ranges.get(name, (2, 1 << 30))
        low = max(low, 2)
        fitting = [p for p in PRIMES if low <= p <= high and p not in hints.values()]
        fitting += [n for n in range(low, min(high, low + 64) + 1) if n not in hints.values()]
        hints[name] = next((p for p in fitting if p not in taken), fitting[0] if fitting else low)
    return hints


def first_unsized(program: Program) -> fx.Node | None:
    """The first value of which a size depends on what the inputs hold, not on their shapes."""
    node: fx.Node
    for node in program.graph.nodes:
        if unsized(node):
            return node
    return None


def unsized(node: fx.Node) -> bool:
    """Whether the size of a value depends on what the inputs hold, not on their shapes."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape)


class _Propagate(fx.Interpreter):
    """Runs the graph under a fake mode and keeps each node's value."""

    def __init__(self, program: Program, mode: FakeTensorMode, hints: dict[str, int]) -> None:
        super().__init__(nn.Module(), garbage_collect_values=False, graph=program.graph)
        self.program, self.mode, self.hints = program, mode, hints
        self.device = next(iter(program.tensors.values()), torch.empty(0)).device
        self.ports = dict(zip(program.placeholders, program.inputs, strict=True))

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "output":
            return None
        key = self._key(n)
        if n.meta.get("key") != key or "val" not in n.meta:
            n.meta["val"] = self._value(n)
            n.meta["key"] = key
        return n.meta["val"]

    def _value(self, n: fx.Node) -> Any:
        if n.op == "placeholder":
            shape, dtype, device = self._key(n)[1:]
            return torch.empty(shape, dtype=dtype, device=device)
        if n.op == "get_attr":
            if n.target in self.program.maps:
                return self.program.maps[str(n.target)]
            tensor = self.program.tensors[str(n.target)]
            return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        if n.target in SHAPES:
            target: Any = n.target
            like, shape = SHAPES[target](*args, **kwargs)
            return torch.empty(shape, dtype=like.dtype, device=like.device)
        _check_many(n, args)
        return self.call_function(n.target, args, kwargs)

    def _key(self, n: fx.Node) -> tuple[Any, ...]:
        """What a node's value depends on: equal keys, equal values."""
        if n.op == "placeholder":
            port = self.ports[n]
            shape = tuple(self.hints[size] if isinstance(size, str) else size for size in port.shape)
            return "placeholder", shape, port.dtype, self.device
        if n.op == "get_attr":
            if n.target in self.program.maps:
                return "map", id(self.program.maps[str(n.target)])
            tensor = self.program.tensors[str(n.target)]
            return "tensor", tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device
        return n.target, _frozen(n.args), _frozen(n.kwargs)


def _check_many(n: fx.Node, args: tuple[Any, ...]) -> None:
    """Raise `ValueError` before a call that would give one tensor for every index of a long axis."""
    if not isinstance(n.target, OpOverload) or [str(r.type) for r in n.target._schema.returns] != ["List[Tensor]"]:
        return
    longest = max((size for a in args if isinstance(a, torch.Tensor) for size in a.shape), default=0)
    if longest > MOST_ITEMS:
        raise ValueError(f"{n} ({n.target}) would give more than {MOST_ITEMS} tensors")


def _frozen(value: Any) -> Any:
    """An argument as a value to compare; a node stands for its fake value, held so that no other takes its place."""
    if isinstance(value, fx.Node):
        return _Held(value.meta["val"])
    if isinstance(value, tuple | list):
        return tuple(_frozen(v) for v in value)
    if isinstance(value, dict):
        return tuple((k, _frozen(v)) for k, v in value.items())
    return type(value), value


class _Held:
    """Equal to another only if both hold the same object."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and (
            self.value is other.value or (isinstance(self.value, int | float) and self.value == other.value)
        )

    def __hash__(self) -> int:
        return id(self.value)


def _mode_of(program: Program) -> FakeTensorMode:
    """The fake mode of values that the graph already has, or a new one: fakes of two modes do not mix."""
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True, allow_non_fake_inputs=True)
