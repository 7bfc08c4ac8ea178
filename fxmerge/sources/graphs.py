"""A graph as plain JSON and back: every argument spelt out, every operator looked up, nothing evaluated."""

from __future__ import annotations

import keyword
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from fxmerge.errors import SourceError, UnsafeFileError
from fxmerge.ir.program import target_name
from fxmerge.messages import damaged, field, printable
from fxmerge.sources.operators import DTYPES, LAYOUTS, MANY, MEMORY_FORMATS, NUMBER, PYTHON, find_operator, kind_of

MOST_BITS = 128
"""A size computed in the graph stays below this many bits, so that reading a file cannot compute for ever."""

MOST_NODES = 200_000
TENSOR_NAME = re.compile(r"""[^."'\\]+(\.[^."'\\]+)*""")


def encode(graph: fx.Graph) -> dict[str, Any]:
    """`{"nodes": [...], "results": [...]}`: nodes refer to each other by position."""
    number = {node: i for i, node in enumerate(graph.nodes)}
    nodes: list[dict[str, Any]] = []
    results: list[int] = []
    for node in graph.nodes:
        if node.op == "output":
            results = [number[n] for n in node.args[0]]
            continue
        entry: dict[str, Any] = {"op": node.op, "target": str(node.target)}
        if node.op == "call_function":
            entry["target"] = target_name(node.target)
            entry["args"] = [_encode(a, number) for a in node.args]
            if node.kwargs:
                entry["kwargs"] = {k: _encode(a, number) for k, a in node.kwargs.items()}
        entry |= {key: str(node.meta[key]) for key in ("source", "by") if node.meta.get(key)}
        nodes.append(entry)
    return {"nodes": nodes, "results": results}


def decode(value: Mapping[str, Any]) -> fx.Graph:
    """The graph that `encode` wrote.

    Raises `UnsafeFileError` or `SourceError` for anything but functional operators, arithmetic on sizes and
    names that are safe to place in generated code.
    """
    graph = fx.Graph()
    made: list[fx.Node] = []
    bits: dict[fx.Node, int] = {}
    inputs: set[str] = set()
    entries = field(value, "nodes", list)
    if len(entries) > MOST_NODES:
        raise damaged(f"{len(entries)} nodes, more than any model has")
    for entry in entries:
        op, target = field(entry, "op", str), field(entry, "target", str)
        if op == "placeholder":
            if not target.isidentifier() or keyword.iskeyword(target) or target in inputs:
                raise damaged(f"{printable(target)!r} is not the name of an input")
            inputs.add(target)
            node = graph.placeholder(target)
        elif op == "get_attr":
            node = graph.get_attr(tensor_name(target))
        elif op == "call_function":
            args = tuple(_decode(a, made) for a in field(entry, "args", list))
            kwargs = {_identifier(k): _decode(a, made) for k, a in entry.get("kwargs", {}).items()}
            node = call(graph, target, args, kwargs, bits)
        else:
            raise damaged(f"unknown kind of node {printable(op)!r}")
        node.meta = {key: printable(entry[key]) for key in ("source", "by") if isinstance(entry.get(key), str)}
        made.append(node)
    graph.output(tuple(_node(i, made) for i in field(value, "results", list)))
    return graph


def call(
    graph: fx.Graph,
    target: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    bits: dict[fx.Node, int],
    *,
    mutable: bool = False,
) -> fx.Node:
    """A call of the operator or size arithmetic named `target`. `bits` bounds the numbers computed so far."""
    if target not in PYTHON:
        operator = find_operator(target, mutable=mutable)
        node = graph.call_function(operator, args, dict(kwargs))
        if kind_of(operator) == NUMBER:
            bits[node] = 40
        return node
    operands = [*args, *kwargs.values()]
    if target == "operator.getitem":
        source, index = operands if len(operands) == 2 else (None, None)
        if not isinstance(source, fx.Node) or not _gives_many(source) or type(index) is not int:
            raise damaged("an item is taken of something that has none")
        return graph.call_function(PYTHON[target], args, dict(kwargs))
    size = [bits.get(a, -1) if isinstance(a, fx.Node) else _bits(a) for a in operands]
    if not size or min(size) < 0:
        raise damaged(f"{target} is called on something that is not a number")
    if target == "operator.pow":
        if len(operands) != 2 or type(operands[1]) is not int or not 0 <= operands[1] <= MOST_BITS:
            raise damaged("a power with an unbounded exponent")
        total = size[0] * operands[1]
    else:
        total = sum(size) + 1
    if total > MOST_BITS:
        raise damaged("the graph computes sizes without bound")
    node = graph.call_function(PYTHON[target], args, dict(kwargs))
    bits[node] = total
    return node


def tensor_name(name: Any) -> str:
    """`name` if it can name a tensor: printable, in dotted parts without quotes or backslashes."""
    if not isinstance(name, str) or name != printable(name) or not TENSOR_NAME.fullmatch(name):
        raise UnsafeFileError(
            f"{printable(str(name))!r} cannot be the name of a tensor", "rename it and write the file again"
        )
    return name


def _gives_many(node: fx.Node) -> bool:
    if isinstance(node.target, OpOverload):
        return kind_of(node.target) == MANY
    return node.target is PYTHON["operator.getitem"]


def _bits(value: Any) -> int:
    if isinstance(value, bool | int):
        return int(value).bit_length()
    return 64 if isinstance(value, float) else -1


def _encode(value: Any, number: Mapping[fx.Node, int]) -> Any:
    if isinstance(value, fx.Node):
        return {"node": number[value]}
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": str(value)}
    if isinstance(value, tuple):
        return {"tuple": [_encode(v, number) for v in value]}
    if isinstance(value, Sequence):
        return [_encode(v, number) for v in value]
    if isinstance(value, torch.device):
        return {"device": "cpu"}  # weights are read to the CPU, so constants must be made there too
    for kind, table in _NAMED.items():
        for name, known in table.items():
            if type(value) is type(known) and value == known:
                return {kind: name}
    if isinstance(value, complex):
        return {"complex": [value.real, value.imag]}
    raise SourceError(f"a graph with the value {value!r} cannot be saved", "trace the model without it")


def _decode(value: Any, made: Sequence[fx.Node], depth: int = 0) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if depth > 8:
        raise damaged("arguments nested too deeply")
    if isinstance(value, list):
        return [_decode(v, made, depth + 1) for v in value]
    if not isinstance(value, dict) or len(value) != 1:
        raise damaged("an argument of no known kind")
    [(kind, item)] = value.items()
    if kind == "node":
        return _node(item, made)
    if kind == "tuple":
        return tuple(_decode(v, made, depth + 1) for v in field(value, kind, list))
    if kind == "float" and item in ("inf", "-inf", "nan"):
        return float(item)
    if (
        kind == "complex"
        and isinstance(item, list)
        and len(item) == 2
        and all(isinstance(x, int | float) for x in item)
    ):
        return complex(*item)
    if kind == "device" and item == "cpu":
        return torch.device("cpu")
    if kind in _NAMED and isinstance(item, str) and item in _NAMED[kind]:
        return _NAMED[kind][item]
    raise damaged(f"an argument of no known kind ({printable(str(kind))})")


_NAMED: Mapping[str, Mapping[str, Any]] = {"dtype": DTYPES, "layout": LAYOUTS, "memory_format": MEMORY_FORMATS}


def _node(position: Any, made: Sequence[fx.Node]) -> fx.Node:
    if type(position) is not int or not 0 <= position < len(made):
        raise damaged("a node refers to one that does not exist")
    return made[position]


def _identifier(name: Any) -> str:
    if not isinstance(name, str) or not name.isidentifier():
        raise damaged(f"{printable(str(name))!r} is not the name of an argument")
    return name
