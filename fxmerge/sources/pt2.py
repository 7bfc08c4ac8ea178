"""torch.export archives (.pt2), read as data only and traced again."""

from __future__ import annotations

import io
import math
import pickle
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim
from torch.fx.traceback import preserve_node_meta

from fxmerge.capturing import capture_graph
from fxmerge.capturing.state import quiet
from fxmerge.errors import SourceError, UnsafeFileError
from fxmerge.io.archives import Archive
from fxmerge.io.files import parse_json
from fxmerge.io.guard import reading
from fxmerge.ir.program import Program
from fxmerge.messages import damaged, printable
from fxmerge.sources import graphs
from fxmerge.sources.limits import FREE_BYTES, RATIO, check_values
from fxmerge.sources.pt2_graph import DTYPES, STRIDED, Reader, Size, leaf_names, read_size
from fxmerge.sources.said import SAID, with_said

SCHEMA = 8


def load_pt2(path: str | Path) -> Program:
    """The program of a torch.export archive, its sample inputs included.

    Raises `UnsafeFileError` if it holds pickled objects, compiled code or operators with side effects, `SourceError`
    if it is damaged or of another version.
    """
    path = Path(path)
    with (
        reading(path, todo="export the model again with torch.export.save", how="is damaged"),
        Archive(path) as archive,
        quiet(),
    ):
        program = _load(archive, _root(archive))
        check_values(program)
        return program


def is_pt2(names: Any) -> bool:
    """Whether a zip with these members is a torch.export archive."""
    return any(name.endswith("/archive_format") for name in names) or "serialized_exported_program.json" in names


def _root(archive: Archive) -> str:
    """The folder all members lie in, after refusing those that hold code."""
    marks = [name for name in archive.names if name.endswith("/archive_format")]
    if len(marks) != 1 or archive.read(marks[0]) != b"pt2":
        raise SourceError("it was written by torch 2.7 or older", "load it there and save it again with a newer torch")
    root = marks[0].removesuffix("archive_format")
    models = [name for name in archive.names if name.startswith(root + "models/")]
    if models != [root + "models/model.json"]:
        raise SourceError(
            f"it holds {len(models)} models, not one named 'model'", "save one model with torch.export.save"
        )
    for name in archive.names:
        local = name.removeprefix(root)
        if local.startswith("data/aotinductor/") or local.endswith((".so", ".pkl", ".py")):
            raise UnsafeFileError(f"it holds code: {printable(local)}", "save the exported program alone")
    return root


@dataclass(frozen=True)
class Input:
    """An input of the exported model."""

    name: str
    sizes: tuple[Size, ...]
    dtype: torch.dtype


def _load(archive: Archive, root: str) -> Program:
    serialized = parse_json(archive.read(root + "models/model.json"), "models/model.json")
    if serialized["schema_version"]["major"] != SCHEMA:
        raise SourceError(
            f"its schema has another version than the {SCHEMA} fxmerge reads",
            "export the model again with a current torch",
        )
    state = _state(archive, root + "data/weights/", "model_weights_config.json")
    state |= _state(archive, root + "data/constants/", "model_constants_config.json")
    module = serialized["graph_module"]
    reader, replay = Reader(), _Replay()
    values: dict[str, Any] = {}
    inputs: list[Input] = []
    for spec, argument in zip(module["signature"]["input_specs"], module["graph"]["inputs"], strict=True):
        [(kind, item)] = spec.items()
        if kind in ("parameter", "buffer", "tensor_constant"):
            target = graphs.tensor_name(item["tensor_constant_name" if kind == "tensor_constant" else f"{kind}_name"])
            if target not in state:
                raise damaged(f"the weight {target} is missing")
            replay.place(target, state[target], trained=kind == "parameter")
            values[argument["as_tensor"]["name"]] = reader.graph.get_attr(target)
        elif kind == "user_input" and "as_tensor" in argument:
            name = argument["as_tensor"]["name"]
            meta = module["graph"]["tensor_values"][name]
            inputs.append(Input(name, tuple(read_size(size) for size in meta["sizes"]), DTYPES[meta["dtype"]]))
            values[name] = reader.graph.placeholder(_identifier(name))
        elif kind != "constant_input" and (kind != "user_input" or "as_sym_int" in argument):
            raise SourceError(
                f"it takes an input that is no tensor ({printable(kind)})", "export the model with tensors only"
            )
    results = reader.body(module["graph"], values)
    kept = [r for r, spec in zip(results, module["signature"]["output_specs"], strict=True) if "user_output" in spec]
    outputs = {n: r for n, r in zip(_output_names(module, len(kept)), kept, strict=True) if isinstance(r, fx.Node)}
    reader.graph.output(tuple(outputs.values()))
    reader.graph.lint()
    replay.start(reader.graph, inputs, outputs)
    samples = _samples(archive, root, inputs)
    program = _trace(replay, inputs, serialized["range_constraints"]).evolve(samples=samples)
    member = f"{root}extra/{SAID}"
    return with_said(program, archive.read(member)) if member in archive.names else program


class _Replay(nn.Module):
    """Runs a graph on its own tensors, each call carrying the source line it came from."""

    def place(self, name: str, tensor: Tensor, *, trained: bool) -> None:
        """Register a tensor under its dotted name."""
        *path, leaf = name.split(".")
        owner: nn.Module = self
        for part in path:
            child = owner._modules.get(part)
            if child is None:
                child = nn.Module()
                owner.add_module(part, child)
            owner = child
        if trained and tensor.is_floating_point():
            owner.register_parameter(leaf, nn.Parameter(tensor))
        else:
            owner.register_buffer(leaf, tensor)

    def start(self, graph: fx.Graph, inputs: Iterable[Input], outputs: Iterable[str]) -> None:
        self._calls, self._inputs, self._outputs = graph, [i.name for i in inputs], list(outputs)

    def forward(self, **values: Tensor) -> dict[str, Tensor]:
        with preserve_node_meta():
            results = fx.Interpreter(self, graph=self._calls).run(*(values[name] for name in self._inputs))
        return dict(zip(self._outputs, results, strict=True))


def _trace(replay: _Replay, inputs: Sequence[Input], ranges: Mapping[str, Any]) -> Program:
    """Capture the replayed graph with the dynamic sizes the archive names."""
    dims: dict[str, Any] = {}
    made, shapes = {}, {}
    most = max(FREE_BYTES // 4, RATIO * sum(t.untyped_storage().nbytes() for t in replay.state_dict().values()))
    for each in inputs:
        for size in each.sizes:
            if size.symbol and size.symbol not in dims:
                low, high = _bounds(ranges.get(size.symbol, {}))
                dims[size.symbol] = Dim(f"size{len(dims)}", min=low, max=high)
        if math.prod(size.number for size in each.sizes) * each.dtype.itemsize > most:
            raise damaged(f"the input {printable(each.name)} has an impossible shape")
        made[each.name] = torch.zeros([size.number for size in each.sizes], dtype=each.dtype)
        shapes[each.name] = {
            axis: dims.get(size.symbol, Dim.AUTO) for axis, size in enumerate(each.sizes) if size.symbol is not None
        }
    return capture_graph(replay, made, shapes)


def _bounds(entry: Any) -> tuple[int, int | None]:
    low, high = entry.get("min_val"), entry.get("max_val")
    return (low if type(low) is int and low >= 0 else 0), (high if type(high) is int and high < 1 << 40 else None)


def _state(archive: Archive, folder: str, config: str) -> dict[str, Tensor]:
    """Tensors by name; those that share a stored block share its memory."""
    if folder + config not in archive.names:
        raise SourceError(
            "its weights are pickled, in the format of torch 2.8 or older", "save it again with a newer torch"
        )
    blocks: dict[str, Tensor] = {}
    tensors = {}
    for name, entry in parse_json(archive.read(folder + config), config)["config"].items():
        member, meta = entry["path_name"], entry["tensor_meta"]
        if entry["use_pickle"] or meta is None:
            raise UnsafeFileError(
                f"{printable(name)!r} is a pickled object", "export the model without objects and tensor subclasses"
            )
        if meta["dtype"] not in DTYPES or meta["layout"] != STRIDED:
            raise SourceError(
                f"{printable(name)!r} has a type fxmerge does not read", "convert it to an ordinary tensor"
            )
        dtype = DTYPES[meta["dtype"]]
        if member not in blocks:
            data = bytearray(archive.read(folder + member))
            blocks[member] = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(0, dtype=torch.uint8)
        size, stride = (tuple(s["as_int"] for s in meta[key]) for key in ("sizes", "strides"))
        block = blocks[member]
        if math.prod(size) * dtype.itemsize > block.numel():
            raise damaged(f"{printable(name)!r} is larger than what is stored for it")
        tensors[name] = torch.as_strided(block.view(dtype), size, stride, meta["storage_offset"]["as_int"])
    return tensors


def _samples(archive: Archive, root: str, inputs: Sequence[Input]) -> dict[str, Tensor]:
    """The example inputs of the export, read without executing anything; none if they do not fit the inputs."""
    member = root + "data/sample_inputs/model.pt"
    data = archive.read(member) if member in archive.names else b""
    if not data:
        return {}
    with Archive(io.BytesIO(data), "its sample inputs") as inner:
        for name in inner.names:
            inner.size(name)
    try:
        value = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(
            "its sample inputs are pickled objects that would execute code", "do not use this file"
        ) from error
    given = [t.detach() for t in _tensors(value) if isinstance(t, Tensor)]
    fits = [(t.ndim, t.dtype) for t in given] == [(len(each.sizes), each.dtype) for each in inputs]
    return {each.name: t for each, t in zip(inputs, given, strict=True)} if fits else {}


def _tensors(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    else:
        yield value


def _output_names(module: Any, count: int) -> list[str]:
    signature = module["module_call_graph"][0].get("signature") if module["module_call_graph"] else None
    names = leaf_names(signature["out_spec"]) if signature else None
    if names and len(names) == count:
        return names
    return ["logits" if i == 0 else f"output{i}" for i in range(count)]


def _identifier(name: str) -> str:
    if not name.isidentifier():
        raise damaged(f"{printable(name)!r} is not the name of an input")
    return name
