"""Concrete fake values for every node, at sizes chosen so that a dynamic size equals no static one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fxmerge.ir.merge import SHAPES
from fxmerge.ir.port import Port

MOST_ITEMS = 1 << 16
"""A call gives at most so many tensors: each costs time, whatever its size."""

PRIMES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 5, 3, 2)


class Known(NamedTuple):
    """A node's value on fake tensors, and what it depends on: equal keys, equal values."""

    value: Any
    key: tuple[Any, ...]


def propagate(
    graph: fx.Graph,
    inputs: Sequence[Port],
    tensors: Mapping[str, torch.Tensor],
    maps: Mapping[str, nn.Module],
    hints: Mapping[str, int],
) -> dict[fx.Node, Known]:
    """Every node's value at the sizes `hints`, found by running the graph on fake tensors; nothing is written.

    A node keeps the value that it has (`keep` wrote it) where its operands and arguments are the same ones, so a pass
    costs what it changes.
    """
    mode = _mode_of(graph)
    run = _Propagate(graph, inputs, tensors, maps, hints)
    with mode, torch.no_grad():
        run.run(enable_io_processing=False)
    return run.found


def kept(found: Mapping[fx.Node, Known]) -> bool:
    """Whether all nodes have these values already."""
    return all("val" in node.meta and node.meta.get("key") == known.key for node, known in found.items())


def keep(found: Mapping[fx.Node, Known]) -> None:
    """Write each node's value into its `meta["val"]`."""
    for node, known in found.items():
        node.meta["val"], node.meta["key"] = known


def choose(
    graph: fx.Graph,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    tensors: Mapping[str, torch.Tensor],
    ranges: Mapping[str, tuple[int, int]],
) -> dict[str, int]:
    """A size for each dynamic dimension, inside its range and different from every static size where possible."""
    taken = {n for tensor in tensors.values() for n in tensor.shape}
    taken |= {n for port in (*inputs, *outputs) for n in port.shape if isinstance(n, int)}
    for node in graph.nodes:
        fx.node.map_aggregate((node.args, node.kwargs), lambda a: taken.add(a) if type(a) is int else None)
    hints: dict[str, int] = {}
    for name in dict.fromkeys(n for port in inputs for n in port.dynamic):
        low, high = ranges.get(name, (2, 1 << 30))
        low = max(low, 2)
        fitting = [p for p in PRIMES if low <= p <= high and p not in hints.values()]
        fitting += [n for n in range(low, min(high, low + 64) + 1) if n not in hints.values()]
        hints[name] = next((p for p in fitting if p not in taken), fitting[0] if fitting else low)
    return hints


def first_unsized(nodes: Iterable[fx.Node]) -> fx.Node | None:
    """The first value of which a size depends on what the inputs hold, not on their shapes."""
    return next((node for node in nodes if unsized(node)), None)


def unsized(node: fx.Node) -> bool:
    """Whether the size of a value depends on what the inputs hold, not on their shapes."""
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and any(isinstance(size, torch.SymInt) for size in value.shape)


class _Propagate(fx.Interpreter):
    """Runs the graph under a fake mode and keeps each node's value."""

    def __init__(
        self,
        graph: fx.Graph,
        inputs: Sequence[Port],
        tensors: Mapping[str, torch.Tensor],
        maps: Mapping[str, nn.Module],
        hints: Mapping[str, int],
    ) -> None:
        super().__init__(nn.Module(), garbage_collect_values=False, graph=graph)
        self.tensors, self.maps, self.hints = tensors, maps, hints
        self.device = next(iter(tensors.values()), torch.empty(0)).device
        self.ports = dict(zip((n for n in graph.nodes if n.op == "placeholder"), inputs, strict=True))
        self.found: dict[fx.Node, Known] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "output":
            return None
        key = self._key(n)
        known = "val" in n.meta and n.meta.get("key") == key
        self.found[n] = Known(n.meta["val"] if known else self._value(n), key)
        return self.found[n].value

    def _value(self, n: fx.Node) -> Any:
        if n.op == "placeholder":
            shape, dtype, device = self._key(n)[1:]
            return torch.empty(shape, dtype=dtype, device=device)
        if n.op == "get_attr":
            if n.target in self.maps:
                return self.maps[str(n.target)]
            tensor = self.tensors[str(n.target)]
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
            if n.target in self.maps:
                return "map", id(self.maps[str(n.target)])
            tensor = self.tensors[str(n.target)]
            return "tensor", tuple(tensor.shape), tensor.stride(), tensor.dtype, tensor.device
        return n.target, self._frozen(n.args), self._frozen(n.kwargs)

    def _frozen(self, value: Any) -> Any:
        """An argument as a value to compare; a node stands for its fake value, held so that none takes its place."""
        if isinstance(value, fx.Node):
            return _Held(self.found[value].value)
        if isinstance(value, tuple | list):
            return tuple(self._frozen(v) for v in value)
        if isinstance(value, dict):
            return tuple((k, self._frozen(v)) for k, v in value.items())
        return type(value), value


def _check_many(n: fx.Node, args: tuple[Any, ...]) -> None:
    """Raise `ValueError` before a call that would give one tensor for every index of a long axis."""
    if not isinstance(n.target, OpOverload) or [str(r.type) for r in n.target._schema.returns] != ["List[Tensor]"]:
        return
    longest = max((size for a in args if isinstance(a, torch.Tensor) for size in a.shape), default=0)
    if longest > MOST_ITEMS:
        raise ValueError(f"{n} ({n.target}) would give more than {MOST_ITEMS} tensors")


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


def _mode_of(graph: fx.Graph) -> FakeTensorMode:
    """The fake mode of values that the graph already has, or a new one: fakes of two modes do not mix."""
    for node in graph.nodes:
        value = node.meta.get("val")
        if isinstance(value, FakeTensor):
            return value.fake_mode
    return FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True, allow_non_fake_inputs=True)
