"""An ONNX graph as a module: its weights are the module's, and its nodes run as calls of torch, one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxmerge.errors import SourceError
from fxmerge.from_onnx.call import Call, Known, Operator, Unreadable, Value, known
from fxmerge.from_onnx.file import DEEPEST, OnnxFile
from fxmerge.from_onnx.graph import Graph, Node, Stored, as_written, bound
from fxmerge.ir.module import attribute_names
from fxmerge.messages import listed, printable

FEW = 1024
"""As many whole numbers in a row may be known while a model is traced: axes, sizes, pads, indices."""

HUGE = 1e30
"""A tensor with entries as large is a mask, and was not trained."""

STRUCTURE = frozenset({"Constant", "If"})
"""Operators of the graph itself."""


class OnnxModule(nn.Module):
    """A file as a module: weights by their names, a forward that takes inputs and gives outputs by name."""

    def __init__(self, file: OnnxFile, operators: Mapping[str, Operator]) -> None:
        """Raises `SourceError` naming every operator that is not known, and nodes that have it."""
        super().__init__()
        _check_known(file, operators)
        self._onnx_nodes = Nodes(file, operators, _weights(file, operators, self))

    @property
    def at(self) -> str:
        """The node that ran last."""
        return self._onnx_nodes.at

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        return self._onnx_nodes.run(inputs)


def _check_known(file: OnnxFile, operators: Mapping[str, Operator]) -> None:
    missing: dict[str, list[str]] = {}
    for graph in (file.graph, *(body for body, _ in file.functions.values())):
        for node in graph.all_nodes():
            name = node.operator
            if name not in operators and name not in STRUCTURE and (node.domain, node.kind) not in file.functions:
                missing.setdefault(name, []).append(node.shown)
    if missing:
        shown = [f"{printable(name)} ({printable(listed(nodes, 2))})" for name, nodes in missing.items()]
        one = len(missing) == 1
        raise SourceError(
            f"{file.path} has {'an operator' if one else 'operators'} that fxmerge does not read: {listed(shown, 6)}",
            "export it with standard operators in float32, or add --extension FILE:NAME that reads"
            f" {'it' if one else 'them'} (docs/extending.md)",
        )


@dataclass(frozen=True)
class Weight:
    """A value whose tensor is an attribute of a module: looked up when it is used, since tracing replaces it."""

    owner: nn.Module
    leaf: str
    known: Known | None

    @property
    def value(self) -> Value:
        tensor = getattr(self.owner, self.leaf)
        return tensor if self.known is None else Known(self.known.values, self.known.dtype, tensor)


def _weights(file: OnnxFile, operators: Mapping[str, Operator], module: nn.Module) -> dict[int, Weight | Known]:
    """Make parameters and buffers of a module of all tensors of a file; where each is, by its identity."""
    stored = [each for graph in file.graphs for each in graph.all_stored() if isinstance(each.value, Tensor)]
    statistics, settings = _places(file, operators)
    found: dict[int, Weight | Known] = {}
    names: dict[str, Stored] = {}
    for each in stored:
        value = _numbers(each, each.name in settings)
        number = each.tensor.numel() == 1 and (each.tensor.ndim == 0 or not each.is_initializer)
        if value is not None and (number or each.name in settings):
            found[id(each)] = value
            continue
        name = each.name or "constant"
        while name in names:
            name += "_"
        names[name] = each
    for (name, each), path in zip(names.items(), attribute_names(names).values(), strict=True):
        owner, leaf = _owner(module, path)
        tensor = each.tensor
        if name not in statistics and _may_be_trained(tensor):
            owner.register_parameter(leaf, nn.Parameter(tensor, requires_grad=False))
        else:
            owner.register_buffer(leaf, tensor)
        found[id(each)] = Weight(owner, leaf, _numbers(each, False))
    return found


def _places(file: OnnxFile, operators: Mapping[str, Operator]) -> tuple[set[str], set[str]]:
    """Names of tensors that some operator takes for running statistics, and for settings."""
    statistics: set[str] = set()
    settings: set[str] = set()
    for node in (node for graph in file.graphs for node in graph.all_nodes()):
        if (reader := operators.get(node.operator)) is not None:
            statistics |= {node.inputs[place] for place in reader.statistics if place < len(node.inputs)}
            settings |= {node.inputs[place] for place in reader.settings if place < len(node.inputs)}
    return statistics, settings


def _may_be_trained(tensor: Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > 0 and bool((tensor.abs() < HUGE).all())


def _owner(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    *parts, leaf = path.split(".")
    for part in parts:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    return module, leaf


def _numbers(stored: Stored, is_setting: bool) -> Known | None:
    """The numbers of a tensor that are known while a model is traced; None for weights and large tables."""
    tensor = stored.tensor
    single = tensor.numel() == 1
    row = tensor.ndim <= 1 and tensor.numel() <= FEW and not (tensor.is_floating_point() or tensor.is_complex())
    if not (single or row or (is_setting and tensor.numel() <= FEW)):
        return None
    values = np.empty(tensor.shape, dtype=object)
    flat = tensor.reshape(-1).tolist()
    values.reshape(-1)[:] = [as_written(v) for v in flat] if tensor.dtype is torch.float32 else flat
    return Known(values, tensor.dtype)


class Nodes:
    """Runs the nodes that the outputs of a file need."""

    def __init__(
        self, file: OnnxFile, operators: Mapping[str, Operator], weights: Mapping[int, Weight | Known]
    ) -> None:
        self.file, self.operators, self.weights = file, operators, weights
        self.at = ""

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name."""
        self._check_sizes(inputs)
        values = self._graph(self.file.graph, dict(inputs), 0)
        return {name: _as_tensor(value) for name, value in zip(self.file.graph.outputs, values, strict=True)}

    def _check_sizes(self, inputs: Mapping[str, Tensor]) -> None:
        """Raise unless sizes of one name are the same; while a model is traced, that makes them one symbol."""
        seen: dict[str, Any] = {}
        for name, tensor in inputs.items():
            for said, size in zip(self.file.inputs[name][1] or (), tensor.shape, strict=False):
                if isinstance(said, str) and seen.setdefault(said, size) != size:
                    raise Unreadable(f"its inputs differ in the size {printable(said)}", "give inputs that fit")

    def _graph(self, graph: Graph, values: dict[str, Value], depth: int) -> list[Value]:
        """The outputs of a graph among the values around it."""
        if depth > DEEPEST:
            raise SourceError("its functions call each other too deeply", "export the model again")
        values |= {each.name: self._stored(each) for each in graph.stored if each.name not in values}
        self._nodes(graph.needed, values, depth)
        for name in graph.outputs:
            if name not in values:
                raise Unreadable(f"nothing gives the output {printable(name)}", "export the model again")
        return [values[name] for name in graph.outputs]

    def _nodes(self, nodes: Iterable[Node], values: dict[str, Value], depth: int) -> None:
        for node in nodes:
            self.at = f"{node.operator} ({printable(node.shown)})"
            missing = next((name for name in node.inputs if name and name not in values), None)
            if missing:
                raise Unreadable(f"nothing gives its input {printable(missing)}", "export the model again")
            results = self._results(node, [values[name] if name else None for name in node.inputs], values, depth)
            for name, value in zip(node.outputs, results, strict=False):
                if name:
                    values[name] = value

    def _results(self, node: Node, inputs: list[Value], values: dict[str, Value], depth: int) -> tuple[Value, ...]:
        operator = self.operators.get(node.operator)
        if node.operator == "Constant":
            [(name, value)] = node.attributes.items()
            dtype = torch.float32 if name.startswith("value_float") else torch.int64
            return (self._stored(value) if isinstance(value, Stored) else known(value, dtype),)
        if operator is None and node.operator != "If":
            body, attributes = self.file.functions[node.domain, node.kind]
            given = {**attributes, **node.attributes}
            inner: dict[str, Value] = {**dict.fromkeys(body.inputs), **dict(zip(body.inputs, inputs, strict=False))}
            nodes = tuple(bound(each, given) for each in body.nodes)
            return tuple(self._graph(Graph(body.inputs, body.outputs, nodes), inner, depth + 1))
        version = self.file.versions.get(node.domain, 1)
        call = Call(node.operator, node.name, version, self._attributes(node), inputs, node.outputs)
        if operator is None:
            chosen = call.get("then_branch" if bool(call.number(0)) else "else_branch")
            return tuple(self._graph(chosen, dict(values), depth + 1))
        result = NotImplemented
        given_inputs = [value for value in inputs if value is not None]
        if operator.on_known and given_inputs and all(isinstance(value, Known) for value in given_inputs):
            result = operator.on_known(call)
        if result is NotImplemented:
            result = operator.read(call)
        return result if isinstance(result, tuple) else (result,)

    def _attributes(self, node: Node) -> dict[str, Any]:
        return {name: self._setting(v) if isinstance(v, Stored) else v for name, v in node.attributes.items()}

    def _setting(self, stored: Stored) -> Value:
        held = self.weights.get(id(stored))
        return held.known or held.value if isinstance(held, Weight) else held

    def _stored(self, stored: Stored) -> Value:
        held = self.weights.get(id(stored))
        if held is None:
            return stored.tensor
        return held.value if isinstance(held, Weight) else held


def _as_tensor(value: Value) -> Tensor:
    if isinstance(value, Known):
        return value.tensor()
    if not isinstance(value, Tensor):
        raise Unreadable("an output is no tensor but a sequence", "export a model whose outputs are tensors")
    return value
