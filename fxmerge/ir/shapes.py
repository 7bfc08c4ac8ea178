"""Concrete fake values for every node, at sizes chosen so that a dynamic size equals no static one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

if TYPE_CHECKING:
    from fxmerge.ir.program import Program

PRIMES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 5, 3, 2)


def propagate(program: Program) -> dict[str, int]:
    """Set every node's `meta["val"]` by running the graph on fake tensors; return the sizes used."""
    hints = dict(program.hints) or choose(program)
    mode = FakeTensorMode(shape_env=ShapeEnv(), static_shapes=True, allow_non_fake_inputs=True)
    run = _Propagate(program, mode)
    with mode, torch.no_grad():
        fakes = []
        for port in program.inputs:
            shape = [hints[size] if isinstance(size, str) else size for size in port.shape]
            fakes.append(torch.empty(shape, dtype=port.dtype, device=run.device))
        run.run(*fakes, enable_io_processing=False)
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


class _Propagate(fx.Interpreter):
    """Runs the graph under a fake mode and keeps each node's value."""

    def __init__(self, program: Program, mode: FakeTensorMode) -> None:
        super().__init__(nn.Module(), garbage_collect_values=False, graph=program.graph)
        first = next(iter(program.tensors.values()), torch.empty(0))
        self.device = first.device
        self.fakes: dict[str, Any] = {name: mode.from_tensor(t) for name, t in program.tensors.items()}
        self.maps: Mapping[str, nn.Module] = program.maps

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.maps[target] if target in self.maps else self.fakes[target]

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if n.op != "output":
            n.meta["val"] = value
        return value


def static(value: Any) -> Any:
    """Shape of a fake value, or None if it is no tensor."""
    return tuple(value.shape) if isinstance(value, Tensor) else None
