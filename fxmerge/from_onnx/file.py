"""An ONNX file, read within bounds: sizes, nesting, and weights beside it that lie in its own folder."""

from __future__ import annotations

import math
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxmerge.errors import SourceError, UnsafeFileError
from fxmerge.from_onnx.graph import Graph, function_of, graph_of
from fxmerge.io.guard import check_file, read_bytes, reading
from fxmerge.messages import printable

MOST = (1 << 31) - 1
"""Bytes of one protobuf message; weights of larger models lie beside it."""

DEEPEST = 16
"""Graphs within graphs, and functions that call functions."""

OPSETS = range(7, 29)
"""Operator sets that are read; from 11 on what is read is compared with ONNX Runtime in the tests."""

AGAIN = "export the model again"


@dataclass(frozen=True)
class OnnxFile:
    """A model as its file says, its weights in place."""

    path: Path
    graph: Graph
    functions: Mapping[tuple[str, str], tuple[Graph, Mapping[str, Any]]]
    """By domain and name, bodies and default attributes."""
    inputs: Mapping[str, tuple[int, tuple[int | str, ...] | None]]
    """By name, type and shape; sizes that are open are names. No type for what is no tensor (0)."""
    versions: Mapping[str, int]
    """Operator set by domain."""
    metadata: Mapping[str, str]

    @property
    def graphs(self) -> tuple[Graph, ...]:
        """Its graph and the bodies of its functions."""
        return (self.graph, *(body for body, _ in self.functions.values()))


def looks_like_onnx(path: Path, head: bytes) -> bool:
    """Whether a file is ONNX by its name, or by beginning as one does: with a small version number."""
    return path.suffix == ".onnx" or (
        len(head) > 2 and head[0] == 0x08 and 0 < head[1] < 32 and head[2] in (0x12, 0x3A)
    )


def read_file(path: Path) -> OnnxFile:
    """The model in a file, with the weights that lie beside it.

    Raises `SourceError` for a file that is no ONNX model or too deep, and `UnsafeFileError` for one whose weights lie
    outside its folder.
    """
    import onnx

    check_file(path)
    data = read_bytes(path, most=MOST, todo="give a file of at most 2 GiB; larger weights lie beside it")
    proto = onnx.ModelProto()
    with reading(path, how="is no ONNX model", todo=AGAIN):
        proto.ParseFromString(data)
    if not proto.ir_version or not proto.HasField("graph") or not proto.graph.output:
        raise SourceError(f"{path} is no ONNX model", AGAIN)
    with reading(path, todo=AGAIN):
        for tensor in _tensors(proto):
            _place(tensor, path)
    versions = {"" if each.domain == "ai.onnx" else each.domain: each.version for each in proto.opset_import}
    if versions.get("", OPSETS.stop - 1) not in OPSETS:
        raise SourceError(
            f"{path} is written for operator set {versions['']}",
            f"export it for one from 11 to {OPSETS.stop - 1}, or convert it with onnx.version_converter",
        )
    metadata = {each.key: each.value for each in proto.metadata_props}
    with reading(path, todo=AGAIN):
        graph, functions = graph_of(proto.graph), dict(map(function_of, proto.functions))
    return OnnxFile(path, graph, functions, _inputs(proto.graph), versions, metadata)


def _inputs(graph: Any) -> dict[str, tuple[int, tuple[int | str, ...] | None]]:
    held = {tensor.name for tensor in graph.initializer}
    found: dict[str, tuple[int, tuple[int | str, ...] | None]] = {}
    for value in graph.input:
        kind = value.type.tensor_type
        shape = tuple(
            int(d.dim_value) if d.HasField("dim_value") and d.dim_value > 0 else d.dim_param or f"{value.name}.{axis}"
            for axis, d in enumerate(kind.shape.dim)
        )
        if value.name not in held:
            found[value.name] = (kind.elem_type, shape if kind.HasField("shape") else None)
    return found


def _graphs(proto: Any) -> Iterator[Any]:
    """The graph of a model, the graphs in its nodes and the bodies of its functions. Raises where they are too deep."""
    stack = [(proto.graph, 0), *((function, 0) for function in proto.functions)]
    while stack:
        graph, depth = stack.pop()
        if depth > DEEPEST:
            raise SourceError("its graphs are nested too deeply", AGAIN)
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                stack += [(inner, depth + 1) for inner in (attribute.g, *attribute.graphs) if inner.node]


def _tensors(proto: Any) -> Iterator[Any]:
    for graph in _graphs(proto):
        yield from getattr(graph, "initializer", ())
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors


def _place(tensor: Any, path: Path) -> None:
    """Put the bytes of a tensor that lie beside the file into it; check that there are as many as its shape says."""
    import onnx

    count = math.prod(tensor.dims)
    if any(size < 0 for size in tensor.dims) or tensor.data_type not in _known_types():
        raise SourceError(f"its tensor {printable(tensor.name)} has an impossible shape or type", AGAIN)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        where = {each.key: each.value for each in tensor.external_data}
        tensor.raw_data = _read_beside(path, where, printable(tensor.name))
        tensor.ClearField("external_data")
        tensor.ClearField("data_location")
    if tensor.data_type == onnx.TensorProto.STRING:
        return
    held = len(tensor.raw_data) * 8 / _bits(tensor.data_type) if tensor.raw_data else _listed(tensor)
    if held < count:
        raise SourceError(f"its tensor {printable(tensor.name)} is larger than what is stored for it", AGAIN)


def _read_beside(path: Path, where: Mapping[str, str], name: str) -> bytes:
    location = where.get("location", "")
    beside = path.parent / location
    inside = (
        bool(location) and not os.path.isabs(location) and ".." not in Path(location).parts and "\0" not in location
    )
    if not inside or not beside.resolve().is_relative_to(path.parent.resolve()):
        raise UnsafeFileError(
            f"{path}: the weights {name} lie outside its folder, at {printable(location)!r}",
            "put them beside the model and export it again",
        )
    check_file(beside, todo=f"copy it beside {path.name}")
    try:
        offset, size = int(where.get("offset", 0)), beside.stat().st_size
        length = int(where["length"]) if where.get("length") else size - offset
    except ValueError as error:
        raise SourceError(f"the place of the weights {name} is no number", AGAIN) from error
    if not 0 <= offset <= offset + length <= size or not stat.S_ISREG(beside.stat().st_mode):
        raise SourceError(f"{beside} is too short for the weights {name}", "copy it again: it is truncated")
    with open(beside, "rb") as stream:
        stream.seek(offset)
        return stream.read(length)


def _known_types() -> frozenset[int]:
    import onnx

    return frozenset(onnx.TensorProto.DataType.values()) - {0}


def _bits(kind: int) -> int:
    """Bits of one number of a type."""
    import onnx

    name = onnx.TensorProto.DataType.Name(kind)
    if name in ("INT4", "UINT4", "FLOAT4E2M1"):
        return 4
    if name in ("INT2", "UINT2"):
        return 2
    return int(onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize) * 8


def _listed(tensor: Any) -> float:
    """How many numbers a tensor lists one by one."""
    pairs = 2 if tensor.data_type in (14, 15) else 1
    lists = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    packed = 8 / _bits(tensor.data_type) if _bits(tensor.data_type) < 8 else 1
    return max(len(each) for each in lists) / pairs * packed
