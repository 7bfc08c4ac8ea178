"""Carry moves behind the calls that do not mind them, and write those that are left in one way.

    linear(reshape(permute(x)), W)                  -->   reshape(permute(linear(x, W)))
    attention on (batch · heads), tokens, width     -->   attention on batch, heads, tokens, width
    chunk, split, unbind                            -->   slice and select
    any chain of reshapes and permutes              -->   reshape, permute, reshape, where each is needed

Models of one mathematics that lay their axes out differently (tokens first, heads folded into the batch, rows
flattened) become the same program. The result computes the same function; each call sees the axes of its operands in
the order in which they stand in memory, so it is no slower.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx

from fxmerge.coupling import Call
from fxmerge.ir.program import Program, target_name
from passes.batched import batched
from passes.forms import Atom, Form, Group, Size, size
from passes.two_sizes import Sizes, measure

aten = torch.ops.aten

RESHAPES = frozenset(
    f"aten.{name}"
    for name in (
        "reshape.default", "view.default", "_unsafe_view.default", "flatten.using_ints", "unflatten.int",
        "unsqueeze.default", "squeeze.default", "squeeze.dim", "squeeze.dims",
    )
)  # fmt: skip
SPLITS = frozenset({"aten.split.Tensor", "aten.split_with_sizes.default", "aten.chunk.default", "aten.unbind.int"})
UNARY = frozenset(
    f"aten.{name}"
    for name in (
        "gelu.default", "relu.default", "silu.default", "tanh.default", "sigmoid.default", "erf.default", "exp.default",
        "neg.default", "sqrt.default", "rsqrt.default", "abs.default", "log.default", "sin.default", "cos.default",
        "hardswish.default", "hardsigmoid.default", "hardtanh.default", "leaky_relu.default", "elu.default",
        "softplus.default", "mish.default", "reciprocal.default", "pow.Tensor_Scalar", "clamp.default",
        "clamp_min.default", "clamp_max.default", "logical_not.default", "eq.Scalar", "ne.Scalar", "_to_copy.default",
    )
)  # fmt: skip
BINARY = frozenset(f"aten.{name}.Tensor" for name in ("add", "sub", "mul", "div"))
SDPA, MATMUL = "aten.scaled_dot_product_attention.default", "aten.matmul.default"

Value: TypeAlias = "Form | list[Form] | fx.Node | int | float | bool"


def carry_moves(program: Program) -> Program:
    """`program`, normalised, with its moves as late as they can stand, in one spelling."""
    return _Carrier(program).run()


@dataclass
class _Carrier:
    """Builds the new graph call by call; a move changes the form of a value and adds nothing."""

    program: Program
    graph: fx.Graph = field(default_factory=fx.Graph)
    values: dict[fx.Node, Value] = field(default_factory=dict)
    sizes: Sizes = field(default_factory=Sizes)
    emitted: dict[Form, fx.Node] = field(default_factory=dict)

    def run(self) -> Program:
        self.measured = measure(self.program)
        for node in self.program.graph.nodes:
            self.node = node
            if node.op == "output":
                self.graph.output(tuple(self.tensor(result) for result in node.args[0]))
            elif node.op == "call_function":
                self.values[node] = self._call(node)
            else:
                self.values[node] = self._leaf(node)
        self.graph.eliminate_dead_code()
        return self.program.evolve(graph=self.graph)

    # -- what a node becomes -----------------------------------------------------------------------------

    def _leaf(self, node: fx.Node) -> Form:
        if node.op == "get_attr":
            return self._source(self.graph.get_attr(str(node.target)), self.measured[node])
        copy = self.graph.placeholder(str(node.target))
        port = self.program.inputs[self.program.placeholders.index(node)]
        for axis, (name, length) in enumerate(zip(port.shape, self.measured[node], strict=True)):
            if isinstance(name, str):
                self.sizes.learn(length, lambda axis=axis: self.add(aten.sym_size.int, copy, axis))  # type: ignore[misc]
        return self._source(copy, self.measured[node])

    def _call(self, node: fx.Node) -> Value:
        if not isinstance(node.meta["val"], Tensor | tuple | list):
            return self._number(node)
        name = target_name(node.target)
        first = self.values.get(node.args[0]) if node.args and isinstance(node.args[0], fx.Node) else None
        if name == "operator.getitem" and isinstance(first, list):
            return first[node.args[1]]  # type: ignore[index]
        if isinstance(first, Form):
            found = self._moved(node, name, first)
            if found is None:
                found = self._behind(node, name, first)
            if found is not None:
                return found
        return self._plain(node)

    def _number(self, node: fx.Node) -> Value:
        """A size, or something else that is no tensor: a constant, or computed from the dynamic sizes."""
        here, there = self.measured[node]
        if here == there:
            return here  # type: ignore[no-any-return]
        if not isinstance(here, int) or isinstance(here, bool):
            return self._copy(node)
        self.sizes.learn((here, there), lambda: self._copy(node))
        return self.sizes.argument((here, there), self.graph)

    def _plain(self, node: fx.Node) -> Value:
        """The same call; its operands are written out."""
        copy, measured = self._copy(node), self.measured[node]
        return self._source(copy, measured) if isinstance(node.meta["val"], Tensor) else copy

    def _copy(self, node: fx.Node) -> fx.Node:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self.tensor)
        return self.add(node.target, *args, **kwargs)

    def _source(self, node: fx.Node, measured: tuple[Size, ...]) -> Form:
        """A new call's result as a form of itself."""
        for axis, length in enumerate(measured):
            self.sizes.learn(length, lambda axis=axis: self.add(aten.sym_size.int, node, axis))  # type: ignore[misc]
        axes = tuple(() if length == (1, 1) else (Atom(length),) for length in measured)
        return Form(node, axes, axes)

    # -- moves -------------------------------------------------------------------------------------------

    def _moved(self, node: fx.Node, name: str, form: Form) -> Value | None:
        """The form of a moved value; None if the call is no move, or one that no form describes."""
        if name in RESHAPES:
            return form.reshape(self.measured[node])
        if name == "aten.permute.default":
            return form.permute([int(axis) for axis in node.args[1]])  # type: ignore[union-attr, arg-type]
        if name in SPLITS:
            return self._split(node, form)
        if name not in ("aten.select.int", "aten.slice.Tensor"):
            return None
        call = Call.of(node)
        axis = call.dim("dim", "self")
        if name == "aten.select.int":
            return self._select(form, axis, call.arguments["index"])
        start, stop = call.arguments["start"] or 0, call.arguments["end"]
        stop = form.shape[axis][0] if stop is None else stop
        return self._slice(form, axis, start, stop) if call["step"] == 1 else None

    def _split(self, node: fx.Node, form: Form) -> list[Form] | None:
        axis, start, parts = Call.of(node).dim("dim", "self"), 0, []
        for number, part in enumerate(self.measured[node]):
            if target_name(node.target) == "aten.unbind.int":
                found = self._select(form, axis, number)
            else:
                found = self._slice(form, axis, start, start + part[axis][0])
                start += part[axis][0]
            if found is None:
                return None
            parts.append(found)
        return parts

    def _select(self, form: Form, axis: int, index: Any) -> Form | None:
        group, (length, other) = form.out[axis], form.shape[axis]
        rest = (*form.out[:axis], *form.out[axis + 1 :])
        if not group:
            return form.regroup(rest)
        if not isinstance(index, int) or len(group) != 1 or (index < 0 and length != other):
            return None
        base, place = self._isolated(form, group[0])
        node = self.add(aten.select.int, self.write(base), place, index % length if index < 0 else index)
        return Form(node, (*base.out[:place], *base.out[place + 1 :]), rest)

    def _slice(self, form: Form, axis: int, start: Any, stop: Any) -> Form | None:
        group, (length, other) = form.out[axis], form.shape[axis]
        if length != other or not isinstance(start, int) or not isinstance(stop, int):
            return None
        start, stop = (min(max(n + length if n < 0 else n, 0), length) for n in (start, stop))
        if (start, stop) == (0, length):
            return form
        minor = size(group[1:])
        if minor[0] != minor[1] or start % minor[0] or stop % minor[0] or start >= stop:
            return None
        base, place = self._isolated(form, group[0])
        node = self.add(aten.slice.Tensor, self.write(base), place, start // minor[0], stop // minor[0])
        length = (stop - start) // minor[0]
        kept: Group = (Atom((length, length)),) if length > 1 else ()
        out = form.refined({group[0]: kept}).out
        return Form(node, (*base.out[:place], kept, *base.out[place + 1 :]), out)

    def _isolated(self, form: Form, atom: Atom) -> tuple[Form, int]:
        """The source with an atom as an axis of its own, and where that is."""
        out: list[Group] = []
        place = 0
        for group in form.axes:
            if atom not in group:
                out.append(group)
                continue
            at = group.index(atom)
            parts = [part for part in (group[:at], (atom,), group[at + 1 :]) if part]
            place = len(out) + (at > 0)
            out.extend(parts)
        return form.regroup(out), place

    # -- calls that moves can be carried behind ----------------------------------------------------------

    def _behind(self, node: fx.Node, name: str, form: Form) -> Form | None:
        """The form of a call's result if its operand's moves can be carried behind it."""
        tensors = [n for n in node.all_input_nodes if isinstance(n.meta.get("val"), Tensor)]
        if name in (SDPA, MATMUL):
            return self._batched(node, 3 if name == SDPA else 2)
        if name in BINARY and len(tensors) == 2:
            return self._binary(node)
        if form.is_source:
            return None
        if (name in UNARY or name in BINARY) and len(tensors) == 1 and set(node.kwargs) <= {"dtype", "approximate"}:
            more = fx.node.map_arg(node.args[1:], self.tensor)
            return Form(self.add(node.target, form.source, *more, **node.kwargs), form.axes, form.out)
        if name == "aten.linear.default":
            length = self.measured[node][-1]
            return self._on_last(node, form, 1, [() if length == (1, 1) else (Atom(length),)])
        if name in ("aten.layer_norm.default", "aten.rms_norm.default"):
            return self._on_last(node, form, len(node.args[1]))  # type: ignore[arg-type]
        if name == "aten.softmax.int" and int(node.args[1]) % form.rank == form.rank - 1:  # type: ignore[arg-type]
            return self._on_last(node, form, 1)
        return None

    def _on_last(self, node: fx.Node, form: Form, count: int, result: list[Group] | None = None) -> Form:
        """A call that works on the last `count` axes alone: the others come in the order of the source."""
        tail = form.out[form.rank - count :]
        used = {atom for group in tail for atom in group}
        lead = [group for axis in form.axes if (group := tuple(atom for atom in axis if atom not in used))]
        more = [-1, *node.args[2:]] if node.target is aten.softmax.int else [*node.args[1:]]
        args = fx.node.map_arg(more, self.tensor)
        copy = self.add(node.target, self.write(form.regroup([*lead, *tail])), *args, **node.kwargs)
        kept = tuple(result) if result is not None else tail
        return Form(copy, (*lead, *kept), (*form.out[: form.rank - count], *kept))

    def _binary(self, node: fx.Node) -> Form | None:
        """A sum or product of two values moved alike, or of a moved one and a vector over axes that did not move."""
        a, b = (self.values.get(n) if isinstance(n, fx.Node) else None for n in node.args[:2])
        if not isinstance(a, Form) or not isinstance(b, Form) or (a.is_source and b.is_source):
            return None
        if a.alike(b):
            return Form(self.add(node.target, a.source, b.source, *node.args[2:], **node.kwargs), a.axes, a.out)
        for moved, other, swap in ((a, b, False), (b, a, True)):
            vector = other.without_leading_ones()
            if moved.still(vector.rank) and moved.shape == self.measured[node] and not moved.is_source:
                pair = (moved.source, self.write(vector))
                copy = self.add(node.target, *(pair[::-1] if swap else pair), *node.args[2:], **node.kwargs)
                return Form(copy, moved.axes, moved.out)
        return None

    def _batched(self, node: fx.Node, count: int) -> Form | None:
        """Products of the last two axes: the leading ones in the order of the first operand, at most two of them."""
        forms = [self.values.get(n) if isinstance(n, fx.Node) else None for n in node.args[:count]]
        mask = self.values.get(node.args[3]) if len(node.args) > 3 and isinstance(node.args[3], fx.Node) else None
        found = batched([f for f in forms if isinstance(f, Form)], mask if isinstance(mask, Form) else None)
        if found is None or len(found.operands) != count:
            return None
        operands = [self.write(form) for form in found.operands]
        if mask is not None:
            operands.append(self.write(found.mask))  # type: ignore[arg-type]
        more = fx.node.map_arg(node.args[len(operands) :], self.tensor)
        copy = self.add(node.target, *operands, *more, **node.kwargs)
        return Form(copy, found.axes, found.out)

    # -- writing -----------------------------------------------------------------------------------------

    def tensor(self, node: fx.Node) -> Any:
        """A value of the old program as an argument in the new one."""
        value = self.values[node]
        return self.write(value) if isinstance(value, Form) else value

    def write(self, form: Form) -> fx.Node:
        """A value written out: its source reshaped into atoms, permuted, reshaped; each where it is needed."""
        if form not in self.emitted:
            self.emitted[form] = self._written(form.coalesced())
        return self.emitted[form]

    def _written(self, form: Form) -> fx.Node:
        if form.is_source:
            return form.source
        atoms, order = form.atoms(), [atom for group in form.out for atom in group]
        if atoms == order:
            return self._reshape(form.source, form.out)
        node = form.source
        if any(len(group) != 1 for group in form.axes):
            node = self._reshape(node, [(atom,) for atom in atoms])
        node = self.add(aten.permute.default, node, [atoms.index(atom) for atom in order])
        return node if all(len(group) == 1 for group in form.out) else self._reshape(node, form.out)

    def _reshape(self, node: fx.Node, groups: Any) -> fx.Node:
        sizes = [self.sizes.argument(size(group), self.graph) for group in groups]
        return self.add(aten.reshape.default, node, sizes)

    def add(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        node = self.graph.call_function(target, args, kwargs)
        node.meta = {key: self.node.meta[key] for key in ("source", "by") if key in self.node.meta}
        return node
