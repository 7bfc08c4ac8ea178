"""The graph of a file as plain values: nodes, their attributes in Python, tensors as torch has them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fxmerge.from_onnx.call import Unreadable, operator_name

DTYPES = {
    "FLOAT": torch.float32, "DOUBLE": torch.float64, "FLOAT16": torch.float16, "BFLOAT16": torch.bfloat16,
    "INT8": torch.int8, "INT16": torch.int16, "INT32": torch.int32, "INT64": torch.int64, "UINT8": torch.uint8,
    "UINT16": torch.uint16, "UINT32": torch.uint32, "UINT64": torch.uint64, "BOOL": torch.bool,
    "COMPLEX64": torch.complex64, "COMPLEX128": torch.complex128,
}  # fmt: skip


@dataclass(frozen=True)
class Stored:
    """A tensor of the file, by a name."""

    name: str
    value: Any
    """The tensor, or the `Unreadable` that says why torch has none."""
    is_initializer: bool

    @property
    def tensor(self) -> Tensor:
        if isinstance(self.value, Unreadable):
            raise self.value
        found: Tensor = self.value
        return found


@dataclass(frozen=True)
class Reference:
    """Stands for an attribute that a node in a function takes from the call of the function."""

    name: str


@dataclass(frozen=True)
class Node:
    """One node; an attribute is a Python value, a `Stored` tensor, a `Graph` or a `Reference`."""

    domain: str
    kind: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    @property
    def operator(self) -> str:
        return operator_name(self.domain, self.kind)

    @property
    def shown(self) -> str:
        """How messages call it."""
        return self.name or next((name for name in self.outputs if name), "a node without a name")

    @property
    def graphs(self) -> Iterator[Graph]:
        return (value for value in self.attributes.values() if isinstance(value, Graph))


@dataclass(frozen=True)
class Graph:
    """Nodes in an order in which they may run."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[Node, ...]
    stored: tuple[Stored, ...] = ()

    @cached_property
    def needed(self) -> tuple[Node, ...]:
        """The nodes that the outputs need."""
        wanted, kept = set(self.outputs), []
        for node in reversed(self.nodes):
            if wanted.intersection(node.outputs):
                kept.append(node)
                wanted |= set(node.inputs).union(*(graph.reads for graph in node.graphs))
        return tuple(kept[::-1])

    @cached_property
    def reads(self) -> frozenset[str]:
        """All names that this graph, or a graph in it, may read from around it."""
        names = set(self.outputs)
        for node in self.nodes:
            names |= set(node.inputs).union(*(graph.reads for graph in node.graphs))
        return frozenset(names)

    def all_nodes(self) -> Iterator[Node]:
        """Its nodes and those of the graphs in them."""
        for node in self.nodes:
            yield node
            for graph in node.graphs:
                yield from graph.all_nodes()

    def all_stored(self) -> Iterator[Stored]:
        """Its tensors and those of the graphs and nodes in it."""
        yield from self.stored
        for node in self.nodes:
            for value in node.attributes.values():
                if isinstance(value, Stored):
                    yield value
                elif isinstance(value, Graph):
                    yield from value.all_stored()


def graph_of(proto: Any) -> Graph:
    """A graph of a file."""
    stored = tuple(Stored(each.name, _tensor_or_why(each), True) for each in proto.initializer)
    return Graph(_names(proto.input), _names(proto.output), _nodes(proto.node), stored)


def function_of(proto: Any) -> tuple[tuple[str, str], tuple[Graph, Mapping[str, Any]]]:
    """A function of a file: its domain and name, its body and what its attributes are where a call leaves them out."""
    body = Graph(tuple(proto.input), tuple(proto.output), _nodes(proto.node))
    return (proto.domain, proto.name), (body, {each.name: _attribute(each, "") for each in proto.attribute_proto})


def bound(node: Node, given: Mapping[str, Any]) -> Node:
    """A node of a function with the attributes that it takes from the call."""
    if not any(isinstance(value, Reference) for value in node.attributes.values()):
        return node
    taken = {
        name: given.get(value.name) if isinstance(value, Reference) else value
        for name, value in node.attributes.items()
    }
    left = {name: value for name, value in taken.items() if value is not None}
    return Node(node.domain, node.kind, node.name, node.inputs, node.outputs, left)


def dtype_of(kind: int) -> torch.dtype:
    """The dtype of a number for a type in a file. Raises `Unreadable` for one that torch has not."""
    import onnx

    name = onnx.TensorProto.DataType.Name(kind) if kind in onnx.TensorProto.DataType.values() else str(kind)
    if name not in DTYPES:
        raise Unreadable(f"it has numbers of the type {name.lower()}", "export the model in float32")
    return DTYPES[name]


def _names(values: Iterable[Any]) -> tuple[str, ...]:
    return tuple(value.name for value in values)


def _nodes(protos: Iterable[Any]) -> tuple[Node, ...]:
    return tuple(
        Node(
            "" if each.domain == "ai.onnx" else each.domain, each.op_type, each.name, tuple(each.input),
            tuple(each.output), {a.name: _attribute(a, next(iter(each.output), "")) for a in each.attribute},
        )
        for each in protos
    )  # fmt: skip


def _attribute(proto: Any, output: str) -> Any:
    import onnx

    if proto.ref_attr_name:
        return Reference(proto.ref_attr_name)
    if proto.type == onnx.AttributeProto.GRAPH:
        return graph_of(proto.g)
    if proto.type == onnx.AttributeProto.TENSOR:
        return Stored(output, _tensor_or_why(proto.t), False)
    value = onnx.helper.get_attribute_value(proto)
    return [_plain(v) for v in value] if not isinstance(value, bytes | str | int | float) else _plain(value)


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return as_written(value) if isinstance(value, float) else value


def as_written(value: float) -> float:
    """The shortest decimal that is the same number in float32: 1e-05, where a file has 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _tensor_or_why(proto: Any) -> Any:
    """A tensor of a file as torch has it."""
    import onnx

    try:
        dtype = dtype_of(proto.data_type)
    except Unreadable as error:
        return error
    if proto.raw_data and dtype in (torch.bfloat16, torch.float16):
        return torch.frombuffer(bytearray(proto.raw_data), dtype=dtype).reshape(tuple(proto.dims))
    array = np.asarray(onnx.numpy_helper.to_array(proto))
    if dtype is torch.bfloat16:
        return torch.from_numpy(array.astype(np.float32)).to(dtype)
    return torch.from_numpy(array.copy())
