"""Planted symmetries: a parent, and its twin transformed by a random element of its group, merge into the parent.

Everything runs in float64, so an error is a mistake and no rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

import passes
from fxmerge.coupling.axes import Axis, leaf
from fxmerge.coupling.elements import KINDS, Deviation, Element
from fxmerge.coupling.inference import Inference
from fxmerge.coupling.tolerance import occurrences
from fxmerge.ir.maps import AxisMap, Map
from fxmerge.ir.program import Port, Program
from fxmerge.ir.supernet import Own, Place, SuperNet
from fxmerge.ir.wide import WIDER
from passes.spaces.find import TolerancesOf
from passes.spaces.heads import within


@dataclass(frozen=True)
class Planted:
    """Relative errors of one planted symmetry."""

    twin: float
    """Outputs of the transformed parent against the parent's."""
    undone: float
    """Parameters transformed and transformed back, against themselves."""
    moved: float
    """Share of the parameters that the element changed."""
    weights: float
    """Trunk weights of the merge of parent and re-based twin, against the parent's."""
    outputs: float
    """Outputs of that merge, of both tasks, against the parent's."""
    plain: float
    """Outputs of the merge without re-basing, against the parent's: what a wrong map would show."""


def plant(program: Program, seed: int = 0, back: int | None = None) -> Planted:
    """Average `program` and a copy transformed by a random group element, with and without the way back.

    `back` draws the element whose inverse is taken as the way back; by default it is the one that was planted.
    """
    with _default(torch.float64), torch.no_grad():
        parent = lived_in(doubled(program), seed)
        x = parent.samples
        element = random_element(parent, seed)
        way = element if back is None else random_element(parent, back)
        twin = transformed(parent, element).evolve(task="twin")
        expected, seen = parent.run(x), twin.run(x)
        net = passes.insert_merge(passes.line_up([parent.evolve(task="own"), twin]), passes.BUILTIN.rules, 0)
        apart, merged = folded(net.start([1.0, 1.0])), folded(rebased(net, way))
        whole = parent.parameters & merged.tensors.keys()  # of a tensor that was taken apart, parts alone are left
        names = [n for n in whole if merged.tensors[n].shape == parent.tensors[n].shape]
        back = transformed(twin, way.inverse())
        moved = [n for n in parent.parameters if not torch.equal(parent.tensors[n], twin.tensors[n])]
        return Planted(
            twin=max(_error(seen[name], value) for name, value in expected.items()),
            undone=max(_error(back.tensors[n], parent.tensors[n]) for n in parent.parameters),
            moved=sum(parent.tensors[n].numel() for n in moved) / max(parent.count(), 1),
            weights=max((_error(merged.tensors[n], parent.tensors[n]) for n in names), default=0.0),
            outputs=_worst(merged.run(x), expected),
            plain=_worst(apart.run(x), expected),
        )


def change(program: Program, tensors: Mapping[str, Tensor]) -> float:
    """Largest relative change of an output of `program` (in float64) with other tensors."""
    with _default(torch.float64), torch.no_grad():
        before, after = program.run(program.samples), program.run(program.samples, {**program.tensors, **tensors})
    return max(_error(after[name], value) for name, value in before.items())


def doubled(program: Program) -> Program:
    """`program`, normalized, in float64: its tensors, its ports, and every cast inside it."""
    with _default(torch.float32):  # as it was traced: a constant without a dtype has the default one
        program = passes.cleanup(passes.normalize(program))
    graph, _ = program.copy_graph()
    for node in graph.nodes:
        if node.op == "call_function":
            node.args, node.kwargs = fx.node.map_aggregate((node.args, node.kwargs), _wide_dtype)
            if _is_made(node):
                node.kwargs = {**node.kwargs, "dtype": _wide_dtype(node.meta["val"].dtype)}
    with _default(torch.float64):
        return program.evolve(
            graph=graph,
            tensors={name: _wide(tensor.detach()) for name, tensor in program.tensors.items()},
            inputs=tuple(_wide_port(port) for port in program.inputs),
            outputs=tuple(_wide_port(port) for port in program.outputs),
            samples={name: _wide(value) for name, value in program.samples.items()},
        )


def lived_in(program: Program, seed: int) -> Program:
    """`program` with random running statistics: untrained ones, zeros and ones, hide mistakes."""
    inference = program.get(TolerancesOf(passes.BUILTIN.rules, tables=True)).inference
    generator = torch.Generator().manual_seed(seed)
    tensors = dict(program.tensors)
    for name in sorted(inference.transformed - program.parameters):
        factor = torch.rand(tensors[name].shape, generator=generator) + 0.5
        tensors[name] = tensors[name] * factor + (0.1 * factor if bool((tensors[name] == 0).any()) else 0.0)
    return program.evolve(tensors=tensors)


def random_element(program: Program, seed: int) -> Element:
    """A random element of the group of every space: order, scales, signs, dense maps."""
    tolerances = program.get(TolerancesOf(passes.BUILTIN.rules, tables=True))
    inner = within(tolerances)
    together = [{leaf.cls for leaf in occurrences(axis)} for axes in tolerances.tensors() for axis in axes]
    apart = {cls for found in together for cls in found & inner.keys() if inner[cls] not in found}
    # a map acts on one axis: where the owner stands on another axis it cannot tell the owner's indices apart
    inner = {cls: owner for cls, owner in inner.items() if cls not in apart}
    return Element(tolerances, inner, seed, KINDS)


def transformed(program: Program, element: Element) -> Program:
    """`program` with every space transformed: another program with the same function."""
    return program.evolve(tensors={**program.tensors, **changes(program, element)})


def changes(program: Program, element: Element) -> dict[str, Tensor]:
    """The tensors of `program` that `element` changes, changed."""
    inference = element.tolerances.inference
    found = {}
    for name in sorted(inference.transformed & inference.tensors.keys()):
        value = _acted(element, program.tensors[name], inference.tensors[name])
        if not torch.equal(value, program.tensors[name]):
            found[name] = value
    return found


def rebased(net: SuperNet, element: Element) -> SuperNet:
    """The average of both parents, the second carried back by the inverse of `element` through the maps."""
    net = net.start([1.0, 1.0])
    inference = element.tolerances.inference
    for name, module in net.program.maps.items():
        assert isinstance(module, AxisMap)
        _set(module, element, _axis(inference, net.places[name]), isinstance(net.places[name].of[0], str))
    tensors = dict(net.program.tensors)
    for name, own in net.own.items():
        value = _acted(element.inverse(), own.values[1], inference.tensors[name])
        tensors[name] = Own((own.values[0], value), own.seen).average([1.0, 1.0])
    return replace(net, program=net.program.evolve(tensors=tensors))


def _axis(inference: Inference, place: Place) -> Any:
    what = place.of[0]
    axes = inference.tensors[what] if isinstance(what, str) else inference.values[what]
    return axes[place.axis]


def _set(module: AxisMap, element: Element, axis: Axis, of_tensor: bool) -> None:
    """Fill the maps of one axis: M = G⁻¹ where it is written, U = G where a value of it is read."""
    forth, back = _matrix(element, axis), _matrix(element.inverse(), axis)
    for number, block in enumerate(module.blocks):
        merged, own = getattr(module, f"merged{number}"), getattr(module, f"own{number}_1")
        if not isinstance(block, Map):
            assert torch.equal(forth[own][:, merged], torch.eye(len(own))), "a shared axis was transformed"
            continue
        if block.kind == "merge":
            matrices = [block.eye(0) / 2, back[merged][:, own] / 2]
        elif block.kind == "turn":
            matrices = [block.eye(0), back[merged][:, own]]
        else:  # a weight that reads x = G y is W G⁻¹: its own axis carries the inverse transpose
            matrices = [block.eye(0), back[merged][:, own].T if of_tensor else forth[own][:, merged]]
        block.start(matrices, "fixed")


def _matrix(element: Element, axis: Axis) -> Tensor:
    return _acted(element, torch.eye(axis.size), (axis, leaf(axis.size)))


def folded(net: SuperNet) -> Program:
    """A SuperNet as an ordinary program."""
    outputs = [f"{parent.task}.{port.name}" for parent in net.parents for port in parent.outputs]
    hoisted = passes.hoist(net.program.only(outputs))
    return passes.cleanup(passes.fold_merge(hoisted, net.tasks, net.template))


def _acted(element: Element, value: Tensor, axes: Any) -> Tensor:
    result = element.act(value, axes)
    assert result is not None, "a view that nobody needed split"
    return result


def _worst(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest error of any task's outputs ("task.output") against the parent's."""
    return max(_error(value, expected[name.split(".", 1)[1]]) for name, value in found.items())


def _error(value: Tensor, expected: Tensor) -> float:
    return Deviation.between(value, expected).error


def _wide(tensor: Tensor) -> Tensor:
    return tensor.to(WIDER.get(tensor.dtype, tensor.dtype))


def _wide_dtype(value: Any) -> Any:
    return WIDER.get(value, value) if isinstance(value, torch.dtype) else value


def _is_made(node: fx.Node) -> bool:
    """Whether a call makes a tensor from nothing, of the default type."""
    schema = getattr(node.target, "_schema", None)
    takes = schema is not None and any(argument.name == "dtype" for argument in schema.arguments)
    plain = not any(isinstance(operand.meta.get("val"), Tensor) for operand in node.all_input_nodes)
    return takes and plain and node.kwargs.get("dtype") is None and isinstance(node.meta.get("val"), Tensor)


def _wide_port(port: Port) -> Port:
    return Port(port.name, port.shape, WIDER.get(port.dtype, port.dtype))


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """`dtype` where an operator takes the default one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
