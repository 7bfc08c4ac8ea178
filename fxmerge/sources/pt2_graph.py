"""The graph of a torch.export archive as an fx graph, read from its JSON without evaluating any text in it.

torch.export.load itself parses expression strings with an evaluator, follows dotted names into Python modules and
unpickles objects. Nothing of that is used here: sizes are recomputed by tracing the graph again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._ops import OpOverload

from fxmerge.errors import SourceError, UnsafeFileError
from fxmerge.messages import damaged, field, printable
from fxmerge.sources import graphs
from fxmerge.sources.operators import NOTHING, PYTHON, find_operator, kind_of

DTYPES: Mapping[int, torch.dtype] = {
    1: torch.uint8,
    2: torch.int8,
    3: torch.int16,
    4: torch.int32,
    5: torch.int64,
    6: torch.float16,
    7: torch.float32,
    8: torch.float64,
    10: torch.complex64,
    11: torch.complex128,
    12: torch.bool,
    13: torch.bfloat16,
    28: torch.uint16,
    33: torch.uint32,
    34: torch.uint64,
}
"""Numbers of the archive's schema (version 8); types without a CPU kernel are left out."""

MEMORY_FORMATS: Mapping[int, torch.memory_format] = {
    1: torch.contiguous_format,
    2: torch.channels_last,
    3: torch.channels_last_3d,
    4: torch.preserve_format,
}
STRIDED = 7
SYMBOL = re.compile(r"(?:Symbol\(')?([A-Za-z]\w*)(?:'(?:, \w+=True)*\))?")
PLAIN = ("as_int", "as_float", "as_bool", "as_string", "as_ints", "as_floats", "as_bools", "as_strings")
LISTS = ("as_tensors", "as_sym_ints", "as_sym_floats", "as_sym_bools", "as_optional_tensors")


class Reader:
    """Builds one fx graph from the serialized graph and its inlined subgraphs. `values`: what each name stands for."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self._bits: dict[fx.Node, int] = {}

    def body(self, serialized: Any, values: dict[str, Any]) -> list[Any]:
        """Add the calls of a serialized graph; its outputs. `values` has its inputs and gains its results."""
        for entry in field(serialized, "nodes", list):
            self._node(entry, values)
        return [self._argument(output, values) for output in field(serialized, "outputs", list)]

    def _node(self, entry: Any, values: dict[str, Any]) -> None:
        target = field(entry, "target", str)
        names = field(entry, "inputs", list)
        prefix, _, operator = target.partition("ops.")
        if prefix == "torch." and operator.startswith("higher_order."):
            results = self._inline(operator, names, values)
            return self._name_all(field(entry, "outputs", list), results, values)
        name = operator if prefix == "torch." else target.removeprefix("_")
        args: list[Any] = []
        kwargs: dict[str, Any] = {}
        for item in names:
            value = self._argument(field(item, "arg", dict), values)
            if item.get("kind") == 1 or name in PYTHON:
                args.append(value)
            else:
                kwargs[field(item, "name", str)] = value
        if name not in PYTHON:
            found = find_operator(name, mutable=True)
            if kind_of(found) == NOTHING:
                return None  # an assertion
            _check_mode(found, names)
            args, kwargs = _bind(found, args, kwargs)
        node = graphs.call(self.graph, name, tuple(args), kwargs, self._bits, mutable=True)
        trace = (entry.get("metadata") or {}).get("stack_trace")
        if isinstance(trace, str):
            node.meta["stack_trace"] = trace
        return self._name_results(field(entry, "outputs", list), node, values)

    def _inline(self, operator: str, names: Sequence[Any], values: Mapping[str, Any]) -> list[Any]:
        """The calls of a region that only switches gradients off, in place."""
        graph = next(
            (a["arg"]["as_graph"] for a in names if isinstance(a, dict) and "as_graph" in a.get("arg", {})), None
        )
        if not operator.endswith("set_grad_enabled") or graph is None:
            raise SourceError(
                f"the model holds a control-flow operator ({printable(operator)})",
                "merge the part of the model without it, or write it with ordinary operators",
            )
        operands = [self._argument(a["arg"], values) for a in names if not {"as_graph", "as_bool"} & a["arg"].keys()]
        inner = field(graph, "graph", dict)
        inputs = [_name(value) for value in field(inner, "inputs", list)]
        if len(inputs) != len(operands):
            raise damaged("a region and its inputs do not agree")
        return self.body(inner, dict(zip(inputs, operands, strict=True)))

    def _name_results(self, outputs: Sequence[Any], node: fx.Node, values: dict[str, Any]) -> None:
        entries, many = _entries(outputs)
        if not many:
            return self._name_all(outputs, [node], values)
        items: list[fx.Node | None] = []
        for index, entry in enumerate(entries):
            if "as_none" in entry:
                items.append(None)
                continue
            item = graphs.call(self.graph, "operator.getitem", (node, index), {}, self._bits)
            item.meta = dict(node.meta)
            items.append(item)
        return self._name_all(outputs, items, values)

    def _name_all(self, outputs: Sequence[Any], results: Sequence[Any], values: dict[str, Any]) -> None:
        entries, _ = _entries(outputs)
        if len(entries) != len(results):
            raise damaged("an operator and its results do not agree")
        values |= {_name(e): result for e, result in zip(entries, results, strict=True) if "as_none" not in e}

    def _argument(self, value: Any, values: Mapping[str, Any]) -> Any:
        """An argument: a value made before, or a constant."""
        if not isinstance(value, dict) or len(value) != 1:
            raise damaged("an argument of no known kind")
        [(kind, item)] = value.items()
        if kind == "as_none":
            return None
        if kind in PLAIN:
            return _plain(item)
        if kind in LISTS:
            return [self._element(element, kind, values) for element in field(value, kind, list)]
        if kind in ("as_tensor", "as_sym_int", "as_sym_float", "as_sym_bool", "as_optional_tensor"):
            return self._element(item, kind, values)
        if kind == "as_scalar_type" and item in DTYPES:
            return DTYPES[item]
        if kind == "as_memory_format" and item in MEMORY_FORMATS:
            return MEMORY_FORMATS[item]
        if kind == "as_layout" and item == STRIDED:
            return torch.strided
        if kind == "as_device":
            return torch.device("cpu")
        if kind == "as_complex":
            return complex(_plain(item["real"]), _plain(item["imag"]))
        if kind in ("as_custom_obj", "as_operator", "as_graph"):
            raise UnsafeFileError(
                f"the graph holds an object ({kind.removeprefix('as_')})", "export the model without it"
            )
        raise damaged(f"an argument of no known kind ({printable(kind)})")

    def _element(self, item: Any, kind: str, values: Mapping[str, Any]) -> Any:
        if isinstance(item, dict) and len(item) == 1 and "optional" in kind:
            return None if "as_none" in item else self._element(item.get("as_tensor"), "as_tensor", values)
        if isinstance(item, dict) and len(item) == 1:
            [(key, inner)] = item.items()
            if key in ("name", "as_name") and isinstance(inner, str) and inner in values:
                return values[inner]
            if key in ("as_int", "as_float", "as_bool"):
                return _plain(inner)
        raise damaged("an argument refers to nothing")


def _entries(outputs: Sequence[Any]) -> tuple[list[Any], bool]:
    """The results of a call one by one, and whether it gives several."""
    if len(outputs) == 1 and isinstance(outputs[0], dict) and "as_tensors" in outputs[0]:
        return [{"as_tensor": item} for item in field(outputs[0], "as_tensors", list)], True
    return list(outputs), len(outputs) != 1


@dataclass(frozen=True)
class Size:
    """A serialized size: a number, or the name of a symbol ("" for an expression, which is never evaluated)."""

    number: int
    """The size at which the model was exported, at least 2 where it varies."""
    symbol: str | None = None


def read_size(value: Any) -> Size:
    """A size of a serialized tensor. Raises `SourceError` if it is none, or larger than any tensor."""
    number, symbol = value.get("as_int"), None
    if number is None:
        expression = field(value, "as_expr", dict)
        match = SYMBOL.fullmatch(field(expression, "expr_str", str))
        symbol = match.group(1) if match else ""
        number = (expression.get("hint") or {}).get("as_int", 0)
        number = max(number, 2) if type(number) is int else 2
    if type(number) is not int or not 0 <= number <= 1 << 30:
        raise damaged("a tensor has an impossible shape")
    return Size(number, symbol)


def leaf_names(spec: Any) -> list[str] | None:
    """Names of the leaves of a serialized tree, where its dicts name them: `{"logits": ·}` gives ["logits"]."""
    try:
        _, tree = json.loads(spec)
    except (TypeError, ValueError, RecursionError):
        return None
    names = list(_leaves(tree, ""))
    return names if len(set(names)) == len(names) and all(name == printable(name) for name in names) else None


def _leaves(tree: Any, prefix: str) -> list[str]:
    children = tree.get("children_spec") if isinstance(tree, dict) else None
    if not children:
        return [prefix or "logits"] if isinstance(tree, dict) and tree.get("type") is None else []
    try:
        keys = json.loads(tree.get("context") or "null")
    except ValueError:
        keys = None
    if not isinstance(keys, list) or len(keys) != len(children) or not all(isinstance(k, str) for k in keys):
        keys = None
    alone = len(children) == 1 and not keys
    names = []
    for index, child in enumerate(children):
        own = keys[index] if keys else "" if alone else f"{'' if prefix else 'output'}{index}"
        names += _leaves(child, f"{prefix}.{own}" if prefix and keys else prefix + own)
    return names


def _bind(operator: OpOverload, args: list[Any], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments by position where the schema has them so, as older archives give all of them by name."""
    order = [a.name for a in operator._schema.arguments if not a.kwarg_only]
    if any(key not in {a.name for a in operator._schema.arguments} for key in kwargs):
        raise damaged(f"{operator} does not take the arguments it is given")
    while len(args) < len(order) and order[len(args)] in kwargs:
        args.append(kwargs.pop(order[len(args)]))
    return args, kwargs


def _check_mode(operator: OpOverload, names: Sequence[Any]) -> None:
    for item in names:
        if item.get("name") in ("train", "training") and item["arg"].get("as_bool") is True:
            raise SourceError(
                f"the model was exported in training mode ({operator})", "call model.eval() and export it again"
            )


def _name(value: Any) -> str:
    """The name an input or output of a graph has."""
    inner = next(iter(value.values())) if isinstance(value, dict) and len(value) == 1 else None
    name = inner.get("name", inner.get("as_name")) if isinstance(inner, dict) else None
    if not isinstance(name, str):
        raise damaged("an input or output without a name")
    return name


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(v) for v in value]
    if value in ("Infinity", "-Infinity", "NaN"):
        return float(value)
    if not isinstance(value, bool | int | float | str):
        raise damaged("a constant of no known kind")
    return value
