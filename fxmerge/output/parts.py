"""Cut a merged model into its trunk and one head a task, so that a head that nobody asked for is not computed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fxmerge.io.files import weights_beside
from fxmerge.output.onnx import LARGE


@dataclass(frozen=True)
class Part:
    """Nodes of a model that run together: what they read from before, and what they give to others."""

    model: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def cut(path: Path, tasks: Mapping[str, Sequence[str]]) -> tuple[Part | None, dict[str, Part]]:
    """The trunk, which computes what several tasks need, and each task's head; `tasks` gives the outputs of each.

    Raises `KeyError` where a value between them is of unknown type.
    """
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False))
    writer = {name: k for k, node in enumerate(model.graph.node) for name in node.output if name}
    reads = [tuple(_read(node)) for node in model.graph.node]
    needs = {task: _needed(outputs, writer, reads) for task, outputs in tasks.items()}
    users: dict[int, int] = {}
    for nodes in needs.values():
        for k in nodes:
            users[k] = users.get(k, 0) + 1
    shared = {k for k, count in users.items() if count > 1}
    given = {value.name for value in model.graph.input} - {value.name for value in model.graph.initializer}
    heads, passed = {}, set()
    for task, nodes in needs.items():
        own = nodes - shared
        wanted = {name for k in own for name in reads[k]} | set(tasks[task])
        border = sorted(name for name in wanted if writer.get(name) in shared)
        passed |= set(border)
        if own:
            outside = [*border, *sorted(wanted & given)]
            made = [name for name in tasks[task] if writer.get(name) in own]
            heads[task] = Part(_part(model, own, outside, made), tuple(outside), tuple(made))
    if not shared:
        return None, heads
    read = sorted({name for k in shared for name in reads[k]} & given)
    return Part(_part(model, shared, read, sorted(passed)), tuple(read), tuple(sorted(passed))), heads


def behind(path: Path, outputs: Sequence[str], given: Sequence[str]) -> Part:
    """What makes some outputs of others: it reads the `given` ones, and what else these are not made from."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(str(path), load_external_data=False))
    writer = {name: k for k, node in enumerate(model.graph.node) for name in node.output if name}
    reads = [tuple(_read(node)) for node in model.graph.node]
    nodes = _needed(outputs, {name: k for name, k in writer.items() if name not in given}, reads)
    fixed = {value.name for value in model.graph.initializer}
    inputs = sorted({name for k in nodes for name in reads[k] if name in given or name not in {*writer, *fixed}})
    return Part(_part(model, nodes, inputs, outputs), tuple(inputs), tuple(outputs))


def only(path: Path, inputs: Sequence[str] | None, outputs: Sequence[str]) -> Any:
    """The model cut to some of its outputs, weights in it, its ports as they were; inputs are what it reads if None."""
    import onnx

    model = onnx.load(str(path))
    writer = {name: k for k, node in enumerate(model.graph.node) for name in node.output if name}
    part = _part(model, _needed(outputs, writer, [tuple(_read(node)) for node in model.graph.node]), (), ())
    if inputs is None:
        inputs = [name for node in part.graph.node for name in _read(node)] + [*outputs]
    part.graph.input.extend(value for value in model.graph.input if value.name in inputs)
    part.graph.output.extend(value for value in model.graph.output if value.name in outputs)
    return part


def save_part(model: Any, path: Path) -> None:
    """Write it, weights over 1.5 GB beside."""
    import onnx

    large = model.ByteSize() > LARGE
    onnx.save_model(
        model, str(path), save_as_external_data=large, all_tensors_to_one_file=True,
        location=weights_beside(path).name if large else None,
    )  # fmt: skip


def _needed(outputs: Sequence[str], writer: Mapping[str, int], reads: Sequence[tuple[str, ...]]) -> set[int]:
    """Numbers of the nodes that these values are computed by."""
    found: set[int] = set()
    open_ = [writer[name] for name in outputs if name in writer]
    while open_:
        k = open_.pop()
        if k not in found:
            found.add(k)
            open_ += [writer[name] for name in reads[k] if name in writer]
    return found


def _read(node: Any) -> Iterator[str]:
    """Names of the values a node reads, those that its inner graphs take from outside among them."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
            for inner in graph.node:
                yield from _read(inner)
            yield from (value.name for value in graph.output)


def _part(model: Any, nodes: set[int], inputs: Sequence[str], outputs: Sequence[str]) -> Any:
    """The model with these nodes alone."""
    import onnx

    part = onnx.ModelProto()
    part.ir_version, part.producer_name = model.ir_version, model.producer_name
    part.opset_import.extend(model.opset_import)
    part.functions.extend(model.functions)
    part.graph.name = model.graph.name
    kept = [model.graph.node[k] for k in sorted(nodes)]
    part.graph.node.extend(kept)
    used = {name for node in kept for name in _read(node)}
    part.graph.initializer.extend(value for value in model.graph.initializer if value.name in used)
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    for ports, names in ((part.graph.input, inputs), (part.graph.output, outputs)):
        # without shapes: those of inner values are guesses
        ports.extend(onnx.helper.make_tensor_value_info(name, kinds[name], None) for name in names)
    return part
