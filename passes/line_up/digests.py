"""What a call is, whatever the sizes: its operator, its operands, and the arguments that two parents must agree on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from torch import Tensor, fx

from fxmerge.coupling import Call, has_tensor
from fxmerge.ir.program import Program, target_name
from passes.operators import OPERATORS, Operators

IGNORED = frozenset(
    {"device", "layout", "pin_memory", "memory_format", "non_blocking", "cudnn_enable", "requires_grad"}
)
"""Arguments that do not change what is computed."""

VALUES = frozenset({"eps", "scale", "other", "value", "fill_value", "beta"})
"""Numbers that were chosen for one model, or follow from its sizes (see `passes.line_up.constants`)."""

FREE = VALUES | frozenset(
    {
        "size", "sizes", "shape", "split_size", "split_sizes", "normalized_shape", "length", "repeats", "num_groups",
        "groups", "p", "momentum", "output_size", "padding_idx",
    }
)  # fmt: skip
"""Numbers in which parents may differ and still line up: values, sizes, and what only matters in training.

These are torch's own words. No type and no shape tells a size from a stride, so a rule says it of words of its own.
"""

EXACT = frozenset({"other", "value", "fill_value"})
"""Of these, the ones that must agree where the result is no real number: which token is padding, say."""

AXES = frozenset({"dim", "dims", "dim0", "dim1", "axis", "start_dim", "end_dim"})
"""Words for axes: no rule tells an axis from an index, and with other words, other numbers are other calls."""
Token = Any
"""An argument that is no operand, as far as it must agree: equal tokens, equal arguments."""


@dataclass(frozen=True)
class Description:
    """A node without its operands and without sizes. Nodes that do the same thing have equal descriptions."""

    what: str
    operands: tuple[str, ...]
    """The names of its arguments that are tensors, in order."""
    tokens: tuple[tuple[str, Token], ...]


@dataclass(frozen=True)
class Described:
    """A node as its description, its operands, and those arguments that are sizes computed in the graph."""

    description: Description
    operands: tuple[fx.Node, ...]
    sizes: Mapping[str, fx.Node]
    commutes: bool = False
    """Whether its two operands may stand in either order."""


def describe(node: fx.Node, operators: Operators, *, bare: bool = False) -> Described:
    """The description of a node of a program. An input's says nothing of which input it is.

    `bare`: without the tensors of the model that the call could do without (`Operators.neutral`).
    """
    value = _kind(node.meta.get("val"))
    if node.op != "call_function":
        return Described(Description(node.op, (), (("value", value),)), (), {})
    operands: list[tuple[str, fx.Node]] = []
    sizes: dict[str, fx.Node] = {}
    tokens: list[tuple[str, Token]] = [("value", value)]
    told, spelt = operators.numbers(node), operators.sizes(node)
    spared = operators.neutral(node) if bare else {}
    for name, argument in Call.of(node).arguments.items():
        if name not in IGNORED and not (name in spared and is_spare(argument)):
            free = name in FREE.union(spelt) or (name in told and not _is_whole(node))
            token = _token(node, name, argument, name, operands, sizes, free=free)
            tokens.append((name, token))
    description = Description(target_name(node.target), tuple(name for name, _ in operands), tuple(tokens))
    plain = dict(tokens).get("alpha", ("number", 1.0)) == ("number", 1.0)
    commutes = len(operands) == 2 and plain and operators.commutes(node)
    return Described(description, tuple(operand for _, operand in operands), sizes, commutes)


def is_spare(argument: Any) -> bool:
    """Whether an operand is left out, or a tensor of the model itself."""
    return argument is None or (isinstance(argument, fx.Node) and argument.op == "get_attr")


def _kind(value: Any) -> Token:
    """Rank and kind of number of a value."""
    if isinstance(value, Tensor):
        return value.ndim, "float" if value.is_floating_point() else str(value.dtype)
    if isinstance(value, tuple | list):
        return tuple(_kind(item) for item in value)
    return "number"


def _token(
    node: fx.Node,
    name: str,
    value: Any,
    place: str,
    operands: list[tuple[str, fx.Node]],
    sizes: dict[str, fx.Node],
    *,
    free: bool,
) -> Token:
    if isinstance(value, fx.Node):
        if has_tensor(value):
            operands.append((place, value))
            return "operand"
        sizes[place] = value
        return "size"
    if isinstance(value, list | tuple):
        items = enumerate(value)
        return tuple(_token(node, name, item, f"{place}{i}", operands, sizes, free=free) for i, item in items)
    if free and (value is None or _is_number(value)) and not (name in EXACT and _is_whole(node)):
        return "size"
    if name in ("start", "end") and (value is None or _is_number(value)):
        return _border(node, name, value)
    if not _is_number(value):
        return str(value)
    if name in AXES:
        return "axis", int(value) % max(_rank(node, name), 1)
    return "number", float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(node: fx.Node) -> bool:
    """Whether a call's result is of integers or booleans."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and not value.is_floating_point()


def _rank(node: fx.Node, name: str) -> int:
    """The number of axes that a call's argument counts: those of its operand.

    Two calls are known by name: an axis of theirs is one of the result, and no schema or rule tells which is counted.
    """
    if target_name(node.target) in ("aten.unsqueeze.default", "aten.stack.default"):
        return int(node.meta["val"].ndim)
    first = next((n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)), node)
    return int(first.meta["val"].ndim)


def _border(node: fx.Node, name: str, value: float | None) -> Token:
    """Where a slice starts or ends: at the start of an axis, at its end, or between."""
    call = Call.of(node)
    if "dim" not in call.arguments:
        return "number", value
    length = call.shape("self")[call.dim("dim", "self")]
    if value is None:
        value = 0 if name == "start" else length
    place = min(max(value + length if value < 0 else value, 0), length)
    return {0: "first", length: "last"}.get(int(place), "between")


def borders(node: fx.Node) -> tuple[int, int, int] | None:
    """Start, end and length of the axis of a slice, where they are numbers.

    Known by name: it is the arguments of this one call that are compared.
    """
    if node.op != "call_function" or target_name(node.target) != "aten.slice.Tensor":
        return None
    call = Call.of(node)
    length = call.shape("self")[call.dim("dim", "self")]
    start, end = call.arguments["start"] or 0, call.arguments["end"]
    end = length if end is None else end
    if not isinstance(start, int) or not isinstance(end, int):
        return None
    start, end = (min(max(n + length if n < 0 else n, 0), length) for n in (start, end))
    return start, end, length


def input_names(program: Program, *, named: bool) -> dict[fx.Node, str]:
    """What each input is called: its name, or its number."""
    ports = zip(program.placeholders, program.inputs, strict=True)
    return {node: port.name if named else str(number) for number, (node, port) in enumerate(ports)}


@dataclass(frozen=True)
class Structure:
    """For every node that has tensors: its description, and a digest of everything it is computed from."""

    described: Mapping[fx.Node, Described]
    hashes: Mapping[fx.Node, bytes]


@dataclass(frozen=True)
class StructureOf:
    """Digests of what every node is computed from, whatever the sizes and the order of sums and products.

    They are the same in every process (Python's own hashes are not, and −1 and −2 have the same).
    """

    operators: Operators = OPERATORS
    named: bool = False
    """Whether inputs are told apart by their names; otherwise by their order."""
    bare: bool = False
    """Whether calls are described without the tensors of the model that they could do without."""

    def __call__(self, program: Program) -> Structure:
        inputs = input_names(program, named=self.named)
        described: dict[fx.Node, Described] = {}
        hashes: dict[fx.Node, bytes] = {}
        for node in program.graph.nodes:
            if node.op == "output" or not has_tensor(node):
                continue
            found = described[node] = describe(node, self.operators, bare=self.bare)
            below = [hashes[operand] for operand in found.operands]
            trained = node.op == "get_attr" and node.target in program.parameters
            own = repr((found.description, inputs.get(node), trained, found.commutes)).encode()
            hashes[node] = blake2b(own + b"".join(sorted(below) if found.commutes else below), digest_size=16).digest()
        return Structure(described, hashes)
