"""A `Program` from what torch.export gives: state becomes `get_attr` nodes, mutated buffers are not returned."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from fxmerge.capturing.sizes import Sizes
from fxmerge.errors import CaptureError
from fxmerge.ir.program import Port, Program

OURS = str(Path(__file__).parent)

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class Names:
    """What an exported program does not say: names of its tensors, and which of them count the batch."""

    inputs: Sequence[str]
    outputs: Sequence[str]
    rows: frozenset[str]
    """Inputs whose first axis is the batch."""
    follow: Sequence[bool] | None
    """Whether the first axis of each output is the batch; None if its size says it."""
    fixed: int | None = None
    """The only number of rows that the model takes; None if any."""
    prefix: str = ""
    words: Mapping[tuple[str, int], str] = field(default_factory=dict)
    """What axes (input, axis) are called, where their place does not say."""


def from_exported(exported: ExportedProgram, names: Names) -> Program:
    """A program from a decomposed `ExportedProgram`.

    Sizes that the trace holds apart are taken for one only where the program does not run otherwise, and no more of
    them than it needs. Raises `CaptureError` if it runs at no sizes but those of the sample.
    """
    values = _inputs(exported, names)
    failure: RuntimeError | None = None
    for tied in _ties(values, Sizes(exported, values, names.rows, names.words).axes):
        try:
            return _assemble(exported, Sizes(exported, values, names.rows, names.words, tied), names)
        except RuntimeError as error:
            failure = failure or error
    first = str(failure).strip().partition("\n")[0]
    raise CaptureError(
        f"the traced model does not run at other sizes than those of the sample: {first}",
        "trace it with fixed sizes (dynamic_shapes), or remove what depends on one size",
    ) from failure


def source_of(node: fx.Node) -> str:
    """The user's own source line of a node as "file.py:line", or ""."""
    if "source" in node.meta:
        return str(node.meta["source"])
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or "")
    theirs = [f for f in frames if not f[0].startswith((OURS, "<"))]
    own = [f for f in theirs if "/torch/" not in f[0]] or theirs
    return f"{own[-1][0].replace(chr(92), '/').rsplit('/', 1)[-1]}:{own[-1][1]}" if own else ""


def _inputs(exported: ExportedProgram, names: Names) -> dict[str, Tensor]:
    """The fake values of the user's inputs by name."""
    holders = (n for n in exported.graph.nodes if n.op == "placeholder")
    specs = zip(holders, exported.graph_signature.input_specs, strict=True)
    found = [n.meta.get("val") for n, spec in specs if spec.kind is InputKind.USER_INPUT]
    return dict(zip(names.inputs, (v for v in found if isinstance(v, Tensor)), strict=True))


def _ties(
    values: Mapping[str, Tensor], axes: Sequence[tuple[str, int]]
) -> Iterator[tuple[frozenset[tuple[str, int]], ...]]:
    """Ways to take axes for one size: none, each pair that was equally long in the sample, all that were."""

    def length(axis: tuple[str, int]) -> int:
        size: Any = values[axis[0]].shape[axis[1]]
        return int(size.node.hint)

    groups: dict[int, list[tuple[str, int]]] = {}
    for axis in axes:
        groups.setdefault(length(axis), []).append(axis)
    yield ()
    several = [group for group in groups.values() if len(group) > 1]
    for group in several:
        for cut in range(1, len(group) // 2 + 1):
            yield (frozenset(group[:cut]), frozenset(group[cut:]))
        yield from ((frozenset((a, b)),) for i, a in enumerate(group) for b in group[i + 1 :])
    if several:
        yield tuple(frozenset(group) for group in several)


def _assemble(exported: ExportedProgram, sizes: Sizes, names: Names) -> Program:
    signature = exported.graph_signature
    state = {**exported.state_dict, **exported.constants}
    canonical = _untie({k: v for k, v in state.items() if isinstance(v, Tensor)})
    graph = fx.Graph()
    where: dict[fx.Node, fx.Node] = {}
    tensors: dict[str, Tensor] = {}
    parameters: set[str] = set()
    ports: list[Port] = []
    made: dict[str, fx.Node] = {}
    attributes: list[tuple[fx.Node, str]] = []
    nodes = list(exported.graph.nodes)
    for node, spec in zip((n for n in nodes if n.op == "placeholder"), signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            value = node.meta.get("val")
            if not isinstance(value, Tensor):
                continue  # a constant the export burnt in
            name = names.inputs[len(ports)]
            where[node] = graph.placeholder(_identifier(name, {str(n.target) for n in where.values()}))
            ports.append(Port(name, _shape(sizes, value, name in names.rows, names.fixed), value.dtype))
        elif spec.target is not None and spec.target in canonical:
            target = canonical[spec.target]
            name = target.removeprefix(names.prefix)
            tensors[name] = state[target].detach()
            if spec.kind is InputKind.PARAMETER:
                parameters.add(name)
            attributes.append((node, name))
    for node, name in attributes:
        made[name] = made.get(name) or graph.get_attr(name)
        where[node] = made[name]
    for node in nodes:
        if node.op == "call_function":
            where[node] = _copied(graph, node, where)
        elif node.op == "get_attr":
            raise CaptureError(
                f"the traced model refers to a graph of its own ({node.target})", "trace it without control flow"
            )
    results, result_ports = _results(exported, sizes, names, where)
    graph.output(tuple(results))
    aliases = {k.removeprefix(names.prefix): v.removeprefix(names.prefix) for k, v in canonical.items() if k != v}
    fixed = {} if names.fixed is None else {"batch": (names.fixed, names.fixed)}
    return Program(
        graph=graph,
        tensors=tensors,
        inputs=tuple(ports),
        outputs=tuple(result_ports),
        parameters=frozenset(parameters),
        aliases={a: n for a, n in aliases.items() if n in tensors},
        ranges=sizes.ranges | fixed,
    ).evolve()


def _copied(graph: fx.Graph, node: fx.Node, where: Mapping[fx.Node, fx.Node]) -> fx.Node:
    if isinstance(node.target, torch._ops.HigherOrderOperator):
        raise CaptureError(
            f"the traced model branches on data: {node.target} at {source_of(node) or 'an unknown line'}",
            "merge the part of the model without it, or write it with ordinary operators",
        )
    copy = graph.node_copy(node, lambda n: where[n])
    copy.meta = {"source": source_of(node)} if source_of(node) else {}
    return copy


def _results(
    exported: ExportedProgram, sizes: Sizes, names: Names, where: Mapping[fx.Node, fx.Node]
) -> tuple[list[fx.Node], list[Port]]:
    """The nodes that the model returns, and their ports."""
    results: list[fx.Node] = []
    ports: list[Port] = []
    returned: Any = list(exported.graph.nodes)[-1].args[0]
    for value, spec in zip(returned, exported.graph_signature.output_specs, strict=True):
        if spec.kind is not OutputKind.USER_OUTPUT or not isinstance(value, fx.Node):
            continue
        fake = value.meta["val"]
        follows = fake.shape[:1] == (names.fixed,) if names.follow is None else names.follow[len(ports)]
        results.append(where[value])
        ports.append(Port(names.outputs[len(ports)], _shape(sizes, fake, follows, names.fixed), fake.dtype))
    if not results:
        raise CaptureError("the model returns no tensor", "return at least one tensor, or a dict of tensors")
    return results, ports


def _shape(sizes: Sizes, value: Tensor, follows: bool, fixed: int | None) -> Shape:
    """The sizes of a value; a fixed batch is a size with one value, so that it is known for what it is."""
    shape = sizes.shape(value)
    return ("batch", *shape[1:]) if follows and fixed is not None and shape else shape


def _identifier(name: str, taken: set[str]) -> str:
    """A name for a placeholder: letters, digits and underscores, unlike the others."""
    plain = re.sub(r"\W", "_", name)
    plain = f"_{plain}" if plain[:1].isdigit() or keyword.iskeyword(plain) else plain
    while plain in taken:
        plain += "_"
    return plain


def _untie(state: Mapping[str, Tensor]) -> dict[str, str]:
    """First name of each stored tensor, by every name it has."""
    first: dict[Any, str] = {}
    canonical = {}
    for name, tensor in state.items():
        where = (
            id(tensor)
            if tensor.device.type == "meta"
            else (tensor.data_ptr(), tensor.stride())
            if tensor.numel()
            else name
        )
        canonical[name] = first.setdefault((where, tuple(tensor.shape), tensor.dtype), name)
    return canonical
