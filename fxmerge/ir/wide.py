"""Run a program in float64, truly: weights, inputs and maps widened, and the casts inside the model lifted too."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx

from fxmerge.ir.program import Program

WIDER = {
    torch.float16: torch.float64,
    torch.bfloat16: torch.float64,
    torch.float32: torch.float64,
    torch.complex64: torch.complex128,
}


def widen(tensor: Tensor) -> Tensor:
    """A tensor of floats in float64; any other as it is."""
    return tensor.to(WIDER.get(tensor.dtype, tensor.dtype))


def run_wide(program: Program, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs by name, computed in float64. Raises what torch raises where an operator has no such form."""
    tensors = {name: widen(tensor.detach()) for name, tensor in program.tensors.items()}
    maps = copy.deepcopy(dict(program.maps))
    for module in maps.values():
        module.double()
    return outputs(program, {**tensors, **maps}, {name: widen(value) for name, value in inputs.items()})


def outputs(program: Program, attributes: Mapping[str, Any], inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Outputs by name, of attributes (tensors and maps) and inputs that are in float64 already."""
    wanted, found = set(program.result), {}
    for node, value in values(program, attributes, inputs):
        if node in wanted:
            found[node] = value
    return {port.name: found[node] for port, node in zip(program.outputs, program.result, strict=True)}


def values(
    program: Program, attributes: Mapping[str, Any], inputs: Mapping[str, Tensor]
) -> Iterator[tuple[fx.Node, Any]]:
    """Every node with its value in float64, in order; what nobody needs any more is dropped."""
    ports = dict(zip(program.placeholders, program.inputs, strict=True))
    known: dict[fx.Node, Any] = {}
    left = {node: len(node.users) for node in program.graph.nodes}
    for node in program.graph.nodes:
        if node.op == "output" or (node.op == "call_function" and node.meta.get("val") is None):
            continue
        if node.op == "placeholder":
            known[node] = inputs[ports[node].name]
        elif node.op == "get_attr":
            known[node] = attributes[str(node.target)]
        else:
            known[node] = call(node, known)
        yield node, known[node]
        for argument in node.all_input_nodes:
            left[argument] -= 1
            if not left[argument]:
                del known[argument]


def call(node: fx.Node, known: Mapping[fx.Node, Any]) -> Any:
    """The value of a call in float64, from those of its operands."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
    args, kwargs = fx.node.map_aggregate((args, kwargs), lambda a: WIDER.get(a, a) if isinstance(a, torch.dtype) else a)
    with doubles(), torch.no_grad():  # around the call alone: a generator's reader must not run in float64 too
        return node.target(*args, **kwargs)  # type: ignore[operator]


@contextmanager
def doubles() -> Iterator[None]:
    """float64 where an operator takes the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
